"""The OpenAPI description of the gateway, made of the models in `vlmguard.gateway.wire`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vlmguard.gateway import wire

_REF = "#/components/schemas/{model}"
_BODIES: dict[str, tuple[type[BaseModel], type[BaseModel] | None, str]] = {
    "/v1/chat/completions": (wire.ChatRequest, None, "A guarded chat completion"),
    "/v1/responses": (wire.ResponseRequest, None, "A guarded response"),
    "/v1/completions": (wire.CompletionRequest, None, "A guarded completion"),
    "/v1/messages": (wire.MessagesRequest, None, "A guarded message, in Anthropic's form"),
    "/v1/rewrite": (wire.RewriteRequest, wire.RewriteAnswer, "The decision alone"),
}
_PLAIN = {
    "/v1/models": "The target's models",
    "/health/live": "Whether the process runs",
    "/health/ready": "Whether requests can be answered",
    "/metrics": "Numbers for Prometheus",
}


@cache
def openapi_document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models = [model for request, answer, _ in _BODIES.values() for model in (request, answer)]
    wanted = [(model, "validation") for model in [*models, wire.ErrorAnswer] if model is not None]
    _, schemas = models_json_schema(
        wanted,  # type: ignore[arg-type]  # a list of pairs, as it asks for
        ref_template=_REF,
    )
    paths: dict[str, Any] = {
        path: {"post": _post(request, answer, title)}
        for path, (request, answer, title) in _BODIES.items()
    }
    for path, title in _PLAIN.items():
        paths[path] = {"get": {"summary": title, "responses": _responses(None, ready=True)}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VLMGuard-R1 gateway",
            "version": version("vlmguard-r1"),
            "description": "An OpenAI-compatible API in front of any vision-language model. "
            "Fields that are not described pass on to the target.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(request: type[BaseModel], answer: type[BaseModel] | None, title: str) -> dict[str, Any]:
    return {
        "summary": title,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(request)}},
        },
        "responses": _responses(answer),
    }


def _responses(answer: type[BaseModel] | None, *, ready: bool = False) -> dict[str, Any]:
    schema = {} if answer is None else _ref(answer)
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if answer is None:
        content |= {"text/event-stream": {}, "text/plain": {}}
    error = {"application/json": {"schema": _ref(wire.ErrorAnswer)}}
    failed = {"description": "Not ready", "content": {"application/json": {}}}
    return {
        "200": {"description": "Answered", "content": content},
        **({"503": failed} if ready else {}),
        "4XX": {"description": "The request cannot be used", "content": error},
        **({} if ready else {"5XX": {"description": "Guard or target failed", "content": error}}),
    }


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
