"""A server of your own behind the guard: ``uvicorn asgi_app:app --app-dir examples/integrations``.

The model here only repeats what it received, so that you see what the guard made of a request.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vlmguard.integrations.asgi import VLMGuardMiddleware


async def chat(request: Request) -> Response:
    """Stands for your model."""
    body = await request.json()
    message = {"role": "assistant", "content": f"I received: {body['messages'][-1]['content']}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "echo",
            "choices": [choice],
        }
    )


async def health(_request: Request) -> Response:
    """A route that leads to no model, so it is listed below."""
    return Response("up")


own = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/health", health),
    ]
)
app = VLMGuardMiddleware(own, policy="balanced", allow_routes=("GET /health",))
