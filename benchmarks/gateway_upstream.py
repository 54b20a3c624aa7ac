"""A model that answers at once: the upstream of `benchmarks/gateway.py`, in a process of its own.

python benchmarks/gateway_upstream.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiohttp import web

CHUNKS, GAP_S = 40, 0.01
"""A streamed answer has so many pieces, one every so many seconds."""
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
).encode()


def _piece(content: str | None) -> bytes:
    delta = {} if content is None else {"content": content}
    chunk = {
        "id": "chatcmpl-0",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "stub",
        "choices": [
            {"index": 0, "delta": delta, "finish_reason": "stop" if content is None else None}
        ],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def chat(request: web.Request) -> web.StreamResponse:
    """One answer, whole or in pieces."""
    body = await request.json()
    if not body.get("stream"):
        return web.Response(body=_ANSWER, content_type="application/json")
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(CHUNKS):
        await response.write(_piece(f"{number} "))
        due += GAP_S
        await asyncio.sleep(max(0.0, due - loop.time()))
    await response.write(_piece(None))
    await response.write(b"data: [DONE]\n\n")
    return response


async def models(_: web.Request) -> web.Response:
    """The one there is."""
    return web.json_response({"object": "list", "data": [{"id": "stub", "object": "model"}]})


def main() -> None:
    """Serve until killed."""
    app = web.Application(client_max_size=10**8)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
