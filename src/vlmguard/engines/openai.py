"""Any server that speaks the OpenAI chat-completions API.

::

    openai:MODEL@URL[?key_env=NAME&timeout=60&retries=4&prefix=true&vision=false…]

vLLM, SGLang, Ollama, llama.cpp's server, LM Studio, OpenAI. ``MODEL`` may contain ``@``, ``:`` and
``/``; the URL is what follows the last ``@`` before ``http``. Without a URL it is
``$OPENAI_BASE_URL`` or OpenAI's. The key comes from ``$OPENAI_API_KEY`` or the variable that
``key_env`` names, and never appears in a message.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import EventSource

from vlmguard.engines.base import Capability, Sampling, require
from vlmguard.engines.openai_errors import Busy
from vlmguard.engines.openai_http import Endpoint, endpoint_url
from vlmguard.engines.spec import EngineSpec
from vlmguard.engines.wire import EchoFilter, Piece, join, prefix_of, read_piece, request_body
from vlmguard.errors import ConfigError, EngineError, EngineUnavailable
from vlmguard.types import Chat, Completion, Delta, Usage

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_CAPABILITIES = frozenset(
    {Capability.VISION, Capability.STREAMING, Capability.LOGPROBS, Capability.JSON_SCHEMA}
)


class OpenAIEngine:
    """A model behind an HTTP server. Works from any number of event loops; connections are kept.

    Args:
        model: the name that the server knows.
        url: base URL, usually ending in ``/v1``.
        key: sent as a bearer token; ``None`` sends none.
        timeout_s: seconds without a byte from the server; for an answer that is not streamed that
            is the time for all of it. Connecting has 10 s of its own.
        retries: how often a request is repeated on 408, 429, 5xx and failed connections, with
            exponential backoff and jitter, or when ``Retry-After`` says. A timeout is not retried:
            the next try would be as slow and cost as much.
        capabilities: what to ask of the server. `Capability.PREFIX` sends vLLM's
            ``continue_final_message``; llama.cpp continues in any case.
        stream_usage: ask for token counts when streaming (``stream_options``).
        spec: the string that opens this engine again.
        transport: an httpx transport to use instead of the network; for tests.
    """

    def __init__(
        self,
        model: str,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
        capabilities: frozenset[Capability] = DEFAULT_CAPABILITIES,
        stream_usage: bool = True,
        spec: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.spec = spec or f"openai:{model}@{url}"
        self.capabilities = capabilities
        self._model = model
        self._stream_usage = stream_usage
        self._endpoint = Endpoint(
            url,
            key=key,
            timeout_s=timeout_s,
            retries=retries,
            name=self.spec,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"<OpenAIEngine {self.spec}>"

    async def load(self) -> None:
        """Nothing to load: the server has the model."""

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once.

        Raises:
            UnsupportedCapability: more was asked for than ``capabilities``.
            InputError: an empty conversation, or text that is not valid Unicode.
            EngineTimeout: no answer in ``timeout_s``.
            EngineUnavailable: not reachable or failing, after all retries; or not such a server.
            EngineRejected: the server refused the request.
        """
        require(self, chat, sampling)
        response = await self._endpoint.send(self._body(chat, sampling))
        piece = self._read(response)
        return join(
            [piece],
            logprobs=sampling.top_logprobs > 0,
            model=piece.model or self.spec,
            prefix=prefix_of(chat),
        )

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece; raises as `generate` does. Only the beginning is retried."""
        require(self, chat, sampling)
        if Capability.STREAMING not in self.capabilities:
            whole = await self.generate(chat, sampling)
            yield Delta(text=whole.text, finish_reason=whole.finish_reason, usage=whole.usage)
            return
        body = self._body(chat, sampling) | {"stream": True}
        if self._stream_usage:
            body["stream_options"] = {"include_usage": True}
        response = await self._endpoint.send(body, stream=True)
        finish_reason, usage = None, None
        echo = EchoFilter(prefix_of(chat))
        try:
            async with aclosing(self._pieces(response)) as pieces:
                async for piece in pieces:
                    finish_reason = piece.finish_reason or finish_reason
                    usage = piece.usage or usage
                    if text := echo.feed(piece.text):
                        yield Delta(text=text)
        finally:
            await response.aclose()
        yield Delta(text=echo.rest(), finish_reason=finish_reason or "stop", usage=usage or Usage())

    async def aclose(self) -> None:
        """Close the connections of the running event loop; those of ended loops are gone."""
        await self._endpoint.aclose()

    def _body(self, chat: Chat, sampling: Sampling) -> dict[str, Any]:
        body = {"model": self._model, **request_body(chat, sampling)}
        if self._endpoint.url.host == "api.openai.com":
            # OpenAI's reasoning models refuse the older name; other servers may not know the newer.
            body["max_completion_tokens"] = body.pop("max_tokens")
        if chat.messages[-1].role == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _read(self, response: httpx.Response) -> Piece:
        try:
            body = response.json()
        except ValueError:
            raise EngineUnavailable(
                f"{self.spec} sent something that is not JSON: {response.text!r:.200}"
            ) from None
        if isinstance(body, dict) and body.get("error") and "choices" not in body:
            raise self._endpoint.problem(body)
        return read_piece(body, self.spec)

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[Piece, None]:
        """The chunks of a streamed response."""
        try:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                await response.aread()  # the server does not stream: everything at once
                yield self._read(response)
                return
            finished = False
            async with aclosing(EventSource(response).aiter_sse()) as events:
                async for event in events:
                    if event.data.strip() == "[DONE]":
                        return
                    if not event.data:  # e.g. only an id
                        continue
                    piece = self._chunk(event.data)
                    finished = finished or piece.finish_reason is not None
                    yield piece
        except httpx.HTTPError as error:
            raise self._broken_off(error) from error
        if not finished:
            raise EngineUnavailable(f"{self.spec} ended the answer before it was complete")

    def _chunk(self, data: str) -> Piece:
        try:
            body = json.loads(data)
        except ValueError:
            raise EngineUnavailable(
                f"{self.spec} sent a chunk that is not JSON: {data!r:.200}"
            ) from None
        if isinstance(body, dict) and body.get("error"):
            raise self._endpoint.problem(body)
        return read_piece(body, self.spec)

    def _broken_off(self, error: httpx.HTTPError) -> EngineError:
        failed = self._endpoint.failed(error)
        if isinstance(failed, Busy):
            return EngineUnavailable(f"{failed} (in the middle of an answer)")
        return failed


def open_openai(spec: EngineSpec) -> OpenAIEngine:
    """``openai:MODEL@URL[?…]``; options: key_env, timeout (s), retries, prefix, vision,
    streaming, logprobs, json_schema, stream_usage.

    Raises:
        ConfigError: a malformed spec, a wrong option, or a key variable that is not set.
    """
    for name in ("api_key", "key", "token"):
        if name in spec.options:
            raise ConfigError(
                f"openai: a key does not belong into a model spec ({name}=…); put it into "
                "OPENAI_API_KEY or another environment variable named with ?key_env="
            )
    model, url = _model_and_url(spec)
    endpoint_url(url)  # before anything that quotes the spec: it refuses a password in the URL
    # So that the spec says where the answers came from, whatever the environment says later.
    spec = EngineSpec(scheme=spec.scheme, value=f"{model}@{url}", options=spec.options)
    switches = [
        Capability.VISION,
        Capability.STREAMING,
        Capability.LOGPROBS,
        Capability.JSON_SCHEMA,
        Capability.PREFIX,
    ]
    options: dict[str, Any] = spec.take(
        key_env=str,
        timeout=float,
        retries=int,
        stream_usage=bool,
        **{str(capability): bool for capability in switches},
    )
    timeout, retries = options.get("timeout", 60.0), options.get("retries", 4)
    if not 0 < timeout < float("inf"):
        raise ConfigError(f"{spec}: timeout must be more than 0 seconds")
    if not 0 <= retries <= 100:
        raise ConfigError(f"{spec}: retries must be 0 to 100")
    return OpenAIEngine(
        model,
        url,
        key=_key(spec, options.get("key_env")),
        timeout_s=timeout,
        retries=retries,
        capabilities=frozenset(
            capability
            for capability in switches
            if options.get(capability, capability in DEFAULT_CAPABILITIES)
        ),
        stream_usage=options.get("stream_usage", True),
        spec=str(spec),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What an ``openai:`` spec says about a server.

    Attributes:
        model: the name that the server knows.
        url: base URL, usually ending in ``/v1``.
        key: for its ``Authorization`` header, from the environment; ``None`` where there is none.
    """

    model: str
    url: str
    key: str | None = field(repr=False)


def server_of(spec: EngineSpec) -> Server:
    """The server that a spec names, for callers that speak HTTP themselves.

    Args:
        spec: ``openai:MODEL@URL``; its options are not read, but for ``key_env``.

    Raises:
        ConfigError: a malformed spec, or a key variable that is not set.
    """
    model, url = _model_and_url(spec)
    endpoint_url(url)
    return Server(model=model, url=url, key=_key(spec, spec.options.get("key_env")))


def _model_and_url(spec: EngineSpec) -> tuple[str, str]:
    found = re.fullmatch(r"(?P<model>.*)@(?P<url>https?://.*)", spec.value, re.DOTALL)
    if found:
        model, url = found["model"], found["url"].rstrip("/")
    else:
        model = spec.value
        url = os.environ.get("OPENAI_BASE_URL", "").rstrip("/") or DEFAULT_URL
        address = model.rpartition("@")[2]
        if "@" in model and re.match(r"(localhost|[\w.-]+:\d+)(/|$)", address):
            raise ConfigError(f"{spec}: write the URL in full: …@http://{address}")
    if not model or model.startswith(("http://", "https://")):
        raise ConfigError(f"{spec}: names no model; write openai:MODEL@http://host:port/v1")
    return model, url


def _key(spec: EngineSpec, variable: str | None) -> str | None:
    key = os.environ.get(variable or "OPENAI_API_KEY", "").strip()
    if variable and not key:
        raise ConfigError(f"{spec}: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {variable or 'OPENAI_API_KEY'} contains characters that no key has"
        )
    return key or None
