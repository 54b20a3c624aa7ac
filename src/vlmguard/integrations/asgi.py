"""The guard in front of an OpenAI-compatible ASGI application: vLLM, FastAPI, Starlette.

::

    app.add_middleware(VLMGuardMiddleware, policy="balanced", allow_routes=("GET /health",))
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from vlmguard.errors import MissingExtra, VLMGuardError
from vlmguard.images.fetch import Fetcher
from vlmguard.integrations.settings import MiddlewareSettings

try:
    import orjson

    from vlmguard.gateway.apis import APIS, Api
    from vlmguard.gateway.calls import Call, ClientGone, Event, Receive, Scope, Send
    from vlmguard.gateway.drafts import Draft
    from vlmguard.gateway.errors import as_api_error, route_not_allowed
    from vlmguard.gateway.guarding import Decision, PreparingDefence
    from vlmguard.gateway.ledger import decision_headers
    from vlmguard.gateway.refusing import refuse
    from vlmguard.integrations.reviewing import Outcome, Reviewer
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the ASGI middleware", "serve") from error

App = Callable[[Scope, Receive, Send], Awaitable[None]]

_GUARDED = {api.path: api for api in APIS}
_PASSED = (
    ("GET", "/v1/models", True),
    ("GET", "/v1/models", False),
    ("POST", "/v1/embeddings", False),
)
_REPLACED = frozenset({b"content-length", b"transfer-encoding"})
_log = logging.getLogger(__name__)


class VLMGuardMiddleware:
    """Reviews requests before the application sees them; its answers pass untouched.

    Chat completions, responses, completions and Anthropic's messages are reviewed. Models and
    embeddings pass, and so does what ``allow_routes`` lists. Any other route is refused, so that no
    way to the model goes round the guard.

    Args:
        app: the application.
        guard: in place of the one that the settings describe.
        fetcher: in place of the one that fetches remote pictures.
        given: fields of `MiddlewareSettings`.

    Raises:
        ConfigError: a setting is wrong.
        MissingExtra: a dependency is not installed.
    """

    def __init__(
        self,
        app: App,
        *,
        guard: PreparingDefence | None = None,
        fetcher: Fetcher | None = None,
        **given: Any,
    ) -> None:
        self._app = app
        self._settings = MiddlewareSettings.read(given, "VLMGuardMiddleware")
        self._routes = _PASSED + self._settings.routes
        self._reviewer = Reviewer(self._settings, guard=guard, fetcher=fetcher)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket" and not self._passes("GET", _path(scope)):
            await receive()
            reason = "not served here: the guard cannot review it"
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's, with the model loaded beside it."""
        loading = asyncio.ensure_future(self._reviewer.load())
        try:
            await self._app(scope, receive, send)
        finally:
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            await self._reviewer.aclose()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = _path(scope), str(scope["method"])
        api = _GUARDED.get(path) if method == "POST" else None
        if api is None and self._passes(method, path):
            await self._app(scope, receive, send)
            return
        call = Call(scope, receive, send, path)
        try:
            if method == "OPTIONS":  # how browsers ask whether they may; it carries no body
                await self._hand_on(call, b"")
            elif api is None:
                raise route_not_allowed(method, path, "The operator can add it to allow_routes")
            else:
                await self._guarded(call, api)
        except ClientGone:
            return
        except VLMGuardError as error:
            if call.status:
                raise
            told = as_api_error(error)
            await call.answer(told.status, told.body(), headers=told.headers)

    async def _guarded(self, call: Call, api: Api) -> None:
        settings = self._settings
        raw, body = await call.json(settings.max_body_bytes, settings.body_timeout_s)
        if settings.mode != "enforce":
            call.told.append((b"x-vlmguard-mode", settings.mode.encode()))
            if settings.mode == "shadow":
                self._reviewer.observe(api.read, body, _nothing)
            await self._hand_on(call, raw)
            return
        draft = api.read(body, settings.allow_uninspected)
        decision = await self._review(call, draft)
        call.told += decision_headers(decision)
        if decision.refusal is not None:
            await refuse(call, api, draft, decision.refusal)
            return
        await self._hand_on(call, orjson.dumps(draft.body))

    async def _review(self, call: Call, draft: Draft) -> Decision:
        """Decide, unless the client hangs up."""
        try:
            with call.watched():
                return await self._reviewer.review(draft)
        except asyncio.CancelledError:
            if not call.gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            raise ClientGone from None

    async def _hand_on(self, call: Call, body: bytes) -> None:
        """Let the application answer, as if the client had sent this body."""
        headers = [(n, v) for n, v in call.scope["headers"] if n.lower() not in _REPLACED]
        headers.append((b"content-length", str(len(body)).encode()))
        given = False

        async def receive() -> Event:
            nonlocal given
            if given:
                return await call.receive()  # tells when the client hangs up
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: Event) -> None:
            if event["type"] == "http.response.start":
                call.status = event["status"]
                event = {**event, "headers": [*event.get("headers", ()), *call.told]}
            await call.send(event)

        await self._app({**call.scope, "headers": headers}, receive, send)

    def _passes(self, method: str, path: str) -> bool:
        """Whether a route is one that is passed on unreviewed."""
        if path != "/" and any(part in {"", ".", ".."} for part in path.split("/")[1:]):
            return False
        return any(
            wanted in {None, method} and (path.startswith(f"{start}/") if below else path == start)
            for wanted, start, below in self._routes
        )


def _path(scope: Scope) -> str:
    """The path below where the application is mounted, as its own router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(f"{root}/"):
        return path[len(root) :]
    return path


def _nothing(_outcome: Outcome) -> None:
    """The reviewer has logged it."""
