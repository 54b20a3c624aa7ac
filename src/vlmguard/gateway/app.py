"""The ASGI application: routes, and what every request has in common."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress

import orjson

from vlmguard.errors import MissingExtra, VLMGuardError
from vlmguard.gateway.apis import APIS
from vlmguard.gateway.calls import Call, ClientGone, Receive, Scope, Send
from vlmguard.gateway.errors import ApiError, as_api_error
from vlmguard.gateway.gateway import Gateway
from vlmguard.gateway.ledger import GONE
from vlmguard.gateway.logs import log_access, request_id, set_up_logs
from vlmguard.gateway.metrics import CONTENT_TYPE
from vlmguard.gateway.passing import Passed, not_found
from vlmguard.gateway.reviewing import Reviewed
from vlmguard.gateway.serving import Guarded
from vlmguard.gateway.settings import Settings, route_of

try:
    from starlette.applications import Starlette
    from starlette.routing import BaseRoute, Route
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the gateway", "serve") from error

Handler = Callable[[Call], Awaitable[None]]

SETTINGS_VARIABLE = "VLMGUARD_SERVE_SETTINGS"
"""Environment variable in which `vlmguard serve` hands the settings to its workers."""
_REASONS = {"invalid_api_key": "key", "rate_limit_exceeded": "rate"}
"""Code of a refusal → its name among the numbers, where that is another."""
_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_log = logging.getLogger(__name__)


class Endpoint:
    """A handler as an ASGI application: numbers, logs and errors of every request.

    A class, since Starlette takes it as it is; the request and response objects that it makes for
    functions cost as much time as all the rest here.

    Args:
        gateway: its parts.
        route: the path as registered, for numbers.
        handler: answers.
        load: counts as a request in flight. What asks for health and numbers does not: machines
            are added by that count.
    """

    def __init__(
        self, gateway: Gateway, route: str, handler: Handler, *, load: bool = True
    ) -> None:
        self._gateway = gateway
        self._route = route
        self._handler = handler
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        call = Call(scope, receive, send, self._route)
        gateway = self._gateway
        bound = request_id.set(call.id)
        try:
            with (
                gateway.metrics.in_flight() if self._load else nullcontext(),
                gateway.tracing.request(self._route, _Headers(call)),
            ):
                await self._handle(call)
        finally:
            key_id = call.key.id if call.key else None
            elapsed = call.elapsed_ms
            gateway.metrics.request(self._route, call.status, elapsed / 1000)
            log_access(call.method, self._route, call.status, elapsed, key_id=key_id)
            request_id.reset(bound)

    async def _handle(self, call: Call) -> None:
        try:
            await self._handler(call)
        except ClientGone:
            call.status = GONE
        except asyncio.CancelledError:
            if not call.gone:
                call.status = call.status or GONE
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            call.status = GONE
        except VLMGuardError as error:
            told = as_api_error(error)
            self._count(told)
            if not call.status:
                await tell(call, told)
            # Else the answer has begun: the server closes a connection that was left like this.
        except Exception as error:
            _log.exception("an unexpected error")
            self._gateway.metrics.failure("gateway", error)
            if call.status:
                raise
            await tell(
                call,
                ApiError(
                    500,
                    f"The gateway failed in an unexpected way; its log has more under {call.id}",
                    code="internal_error",
                ),
            )

    def _count(self, error: ApiError) -> None:
        metrics = self._gateway.metrics
        if error.status < 500:
            metrics.refused(_REASONS.get(error.code, error.code))
        else:
            cause = error.__cause__
            metrics.failure(error.code, cause if isinstance(cause, Exception) else error)


class _Headers(dict[str, str]):
    """The request's headers as text; made only where somebody traces."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        traceparent = call.headers.get(b"traceparent")
        if traceparent is not None:
            self["traceparent"] = traceparent.decode("latin-1")


async def tell(call: Call, error: ApiError) -> None:
    """Answer with an error."""
    await call.answer(error.status, error.body(), headers=error.headers)


def create_app(gateway: Gateway) -> Starlette:
    """The application of a gateway; opens and closes it with the server."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await gateway.open()
        loop = asyncio.get_running_loop()
        with suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread
            loop.add_signal_handler(signal.SIGHUP, gateway.policies.reload)
        try:
            yield
        finally:
            await gateway.aclose()

    return Starlette(routes=_routes(gateway), lifespan=lifespan)


def _routes(gateway: Gateway) -> list[BaseRoute]:
    def route(path: str, handler: Handler, methods: list[str], *, named: str = "") -> Route:
        return Route(path, Endpoint(gateway, named or path, handler), methods=methods)

    def own(path: str, handler: Handler) -> Route:
        return Route(path, Endpoint(gateway, path, handler, load=False), methods=["GET"])

    passed = Passed(gateway)
    routes: list[BaseRoute] = [route(api.path, Guarded(gateway, api), ["POST"]) for api in APIS]
    routes += [
        route(Reviewed.path, Reviewed(gateway), ["POST"]),
        route("/v1/embeddings", passed, ["POST"]),
        route("/v1/models", passed, ["GET"]),
        route("/v1/models/{id:path}", passed, ["GET"], named="/v1/models/{id}"),
        own("/health/live", _live),
        own("/health/ready", _ready(gateway)),
        own("/metrics", _metrics(gateway)),
        own("/openapi.json", _openapi),
    ]
    taken = {getattr(one, "path", "") for one in routes}
    for text in gateway.settings.allow_routes:
        method, path, below = route_of(text)
        methods = [method] if method else _ALL
        if path not in taken:
            routes.append(route(path, passed, methods))
        if below:
            routes.append(route(f"{path}/{{rest:path}}", passed, methods, named=f"{path}/*"))
    routes += [_Refusing(gateway, one) for one in routes if isinstance(one, Route)]
    routes.append(Route("/{rest:path}", Endpoint(gateway, "other", _refuse), methods=None))
    return routes


async def _refuse(call: Call) -> None:
    raise not_found(call)


class _Refusing(Route):
    """The same path with any other method: 405 in OpenAI's form."""

    def __init__(self, gateway: Gateway, route: Route) -> None:
        allowed = ", ".join(sorted(route.methods or ()))

        async def refuse(call: Call) -> None:
            raise ApiError(
                405,
                f"{call.scope['path']:.200} takes {allowed}, not {call.method}",
                code="method_not_allowed",
                headers={"allow": allowed},
            )

        super().__init__(route.path, Endpoint(gateway, route.path, refuse), methods=None)


async def _live(call: Call) -> None:
    await call.answer(200, b'{"status":"ok"}')


def _ready(gateway: Gateway) -> Handler:
    async def ready(call: Call) -> None:
        found = await gateway.ready()
        told = {"status": found.status, "problems": found.problems}
        await call.answer(503 if found.stopping else 200, orjson.dumps(told))

    return ready


def _metrics(gateway: Gateway) -> Handler:
    async def metrics(call: Call) -> None:
        data = await asyncio.to_thread(gateway.render_metrics)
        await call.answer(200, data, content_type=CONTENT_TYPE.encode())

    return metrics


async def _openapi(call: Call) -> None:
    from vlmguard.gateway.openapi import openapi_document  # noqa: PLC0415  # seldom asked for

    await call.answer(200, orjson.dumps(openapi_document()))


def from_environment() -> Starlette:
    """The application that `vlmguard serve` describes to its workers.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
    set_up_logs(settings.log_level, form=settings.log_form)
    return create_app(Gateway(settings))
