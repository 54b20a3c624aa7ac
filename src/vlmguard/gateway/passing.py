"""Routes that are passed on without a guard: models, embeddings, and what the operator lists."""

from __future__ import annotations

import orjson

from vlmguard.gateway.calls import Call
from vlmguard.gateway.errors import ApiError, route_not_allowed
from vlmguard.gateway.gateway import Gateway
from vlmguard.gateway.inprocess import InProcess
from vlmguard.gateway.streaming import relay
from vlmguard.gateway.upstream import Upstream
from vlmguard.types import Usage


class Passed:
    """Passes a route on.

    Args:
        gateway: its parts.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, call: Call) -> None:
        """Answer a request.

        Raises:
            ApiError: what the client is to be told.
            ClientGone: it hung up.
        """
        gateway = self._gateway
        await gateway.admit(call)
        path = str(call.scope["path"])
        if any(part in {"", ".", ".."} for part in path.split("/")[1:]):
            raise not_found(call)
        if not isinstance(gateway.target, Upstream):
            await self._local(call, gateway.target)
            return
        body = await call.body(gateway.body_limit(call), gateway.settings.body_timeout_s)
        with call.watched():
            query: bytes = call.scope["query_string"]
            response = await gateway.target.send(
                call, path.removeprefix("/v1"), body or None, query=query
            )
            try:
                await relay(call, response, broken=_no_event, ready=_nothing)
            finally:
                response.close()

    async def _local(self, call: Call, target: InProcess) -> None:
        path = str(call.scope["path"])
        if path == "/v1/models":
            await call.answer(200, orjson.dumps(target.models()))
        elif path == f"/v1/models/{target.model}":
            await call.answer(200, orjson.dumps(target.model_entry()))
        else:
            raise ApiError(
                404,
                f"The embedded target has no {path:.200}",
                code="not_found",
                kind="invalid_request_error",
            )


def not_found(call: Call) -> ApiError:
    """A route that is not passed on."""
    path = str(call.scope["path"])
    return route_not_allowed(call.method, path, "The operator can add routes with --allow-route")


async def _nothing(_usage: Usage) -> None:
    """Routes that are passed on are not noted."""


def _no_event(_error: ApiError) -> bytes:
    return b""
