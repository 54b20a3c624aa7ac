"""GGUF models in this process, through llama.cpp.

::

    smollm2[?adapter=/lora.gguf&scale=1.0&ctx=4096&parallel=8&threads=2]
    llamacpp:/model.gguf[?mmproj=/eyes.gguf&adapter=/lora.gguf&scale=1.0&ctx=8192&parallel=4]

Engines of the same model, ``mmproj``, ``ctx``, ``parallel`` and ``threads`` share one loaded copy
of it, whatever their adapters: every request carries the scale of its own adapter and 0 for the
others. So the same 98 MB can answer as the target and, with an adapter, as the rewriter.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmguard.engines.base import Capability, Sampling, require
from vlmguard.engines.gguf_header import read_header
from vlmguard.engines.llamacpp_model import BaseConfig, LoadedModel
from vlmguard.engines.llamacpp_pool import POOL, ModelCopy
from vlmguard.engines.spec import EngineSpec
from vlmguard.engines.wire import join, read_piece, request_body
from vlmguard.errors import ConfigError, EngineRejected, MissingExtra, ModelStoreError
from vlmguard.types import Chat, Completion, Delta, Usage

_ABILITIES = frozenset(Capability) - {Capability.VISION}


class LlamaCppEngine:
    """A view of a loaded GGUF model, with at most one LoRA adapter of its own.

    The model is loaded on first use. Any number of calls may run at once, from several event loops
    and threads; ``parallel`` of them are computed together, the others wait their turn.

    With ``Sampling.json_schema`` a continued prefix is part of the document that must match;
    ``Sampling.grammar`` only covers the new text. At temperature 0 the same call gives the same
    text alone and beside others, up to rounding: the numbers depend a little on what is computed
    together, which can tip a choice between two tokens of nearly equal probability.

    Args:
        config: which model, and how it is loaded.
        adapter: a LoRA adapter as a GGUF file.
        scale: how strongly the adapter applies; 0 is the plain model.
        spec: the string that opens this engine again.
    """

    def __init__(
        self, config: BaseConfig, *, adapter: Path | None = None, scale: float = 1.0, spec: str
    ) -> None:
        self.spec = spec
        self.capabilities = _ABILITIES | ({Capability.VISION} if config.mmproj else frozenset())
        self._config = config
        self._adapter = adapter
        self._scale = scale
        self._lock = threading.Lock()
        self._copy: ModelCopy | None = None
        self._running: set[threading.Event] = set()
        self._closed = False
        if adapter is not None:
            POOL.register(config, adapter)

    def __repr__(self) -> str:
        return f"<LlamaCppEngine {self.spec}>"

    async def load(self) -> None:
        """Pull the model if it is known and missing, and load it.

        Raises:
            ConfigError, ModelStoreError, MissingExtra: it cannot be had.
        """
        await self._loaded()

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once. Cancelling stops the generation within a token, or 512 of the prompt.

        Raises:
            UnsupportedCapability: pictures without ``mmproj``.
            InputError: an empty conversation, or text that is not valid Unicode.
            ConfigError, ModelStoreError, MissingExtra: the model cannot be loaded.
            EngineRejected: the prompt is longer than the context, or llama.cpp refused it.
        """
        require(self, chat, sampling)
        model = await self._loaded()
        with self._stoppable() as stop:
            chunks = await model.run(self._body(model, chat, sampling), stop)
        pieces = [read_piece(chunk, self.spec) for chunk in chunks]
        return join(pieces, logprobs=sampling.top_logprobs > 0, model=self.spec)

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece; raises as `generate` does."""
        require(self, chat, sampling)
        model = await self._loaded()
        finish_reason, usage = "stop", Usage()
        with self._stoppable() as stop:
            body = self._body(model, chat, sampling)
            async with aclosing(model.stream(body, stop)) as chunks:
                async for chunk in chunks:
                    piece = read_piece(chunk, self.spec)
                    finish_reason = piece.finish_reason or finish_reason
                    usage = piece.usage or usage
                    if piece.text:
                        yield Delta(text=piece.text)
        yield Delta(text="", finish_reason=finish_reason, usage=usage)

    async def aclose(self) -> None:
        """Stop what this engine is generating; free the model if no other engine uses it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            copy, self._copy = self._copy, None
            for stop in self._running:
                stop.set()
        if self._adapter is not None:
            POOL.unregister(self._config, self._adapter)
        if copy is not None:
            await asyncio.to_thread(POOL.let_go, copy)

    async def _loaded(self) -> LoadedModel:
        with self._lock:
            if self._closed:
                raise EngineRejected(f"{self.spec} was closed; open it again")
            if self._copy is None:
                self._copy = POOL.hold(self._config, self._adapter)
            copy = self._copy
        try:
            # Shielded: one cancelled call must not take the model from the others that wait.
            return await asyncio.shield(asyncio.wrap_future(copy.model))
        except Exception:
            with self._lock:
                mine, self._copy = self._copy is copy, None
            if mine:
                POOL.let_go(copy)  # the next call tries again
            raise

    @contextmanager
    def _stoppable(self) -> Iterator[threading.Event]:
        stop = threading.Event()
        with self._lock:
            self._running.add(stop)
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                self._running.discard(stop)

    def _body(self, model: LoadedModel, chat: Chat, sampling: Sampling) -> dict[str, Any]:
        harmless = Chat(
            messages=tuple(
                replace(message, text=model.control_tokens.neutralize(message.text))
                for message in chat.messages
            )
        )
        body = request_body(harmless, sampling)
        # llama.cpp's own defaults (the 40 likeliest, none under 5% of the first) would narrow a
        # draw beyond what `Sampling` says; where nothing is drawn, one candidate is 5% faster.
        body |= {"top_k": 0, "min_p": 0.0} if sampling.temperature > 0 else {"top_k": 1}
        if sampling.grammar is not None:
            body["grammar"] = sampling.grammar
        if model.adapters:
            body["lora"] = [
                {"id": number, "scale": self._scale if adapter == self._adapter else 0.0}
                for number, adapter in enumerate(model.adapters)
            ]
        return body


def open_smollm2(spec: EngineSpec) -> LlamaCppEngine:
    """``smollm2[?adapter=…&scale=…&ctx=4096&parallel=8&threads=…]``: the embedded model.

    Eight contexts of 4,096 tokens take 0.75 GB; ``ctx`` may be up to 8192.

    Raises:
        ConfigError: a wrong option, or a file that does not exist.
        ModelStoreError: the adapter is not one.
        MissingExtra: xllamacpp is not installed.
    """
    if spec.value:
        raise ConfigError(f"{spec}: smollm2 takes no path; use llamacpp:{spec.value}")
    options = spec.take(adapter=str, scale=float, ctx=int, parallel=int, threads=int)
    return _open(spec, options, model="smollm2", managed=True, ctx=4096, parallel=8)


def open_llamacpp(spec: EngineSpec) -> LlamaCppEngine:
    """``llamacpp:/model.gguf[?mmproj=…&adapter=…&scale=…&ctx=8192&parallel=4&threads=…]``.

    Memory beside the weights grows with ``ctx`` times ``parallel``.

    Raises:
        ConfigError: a wrong option, or a file that does not exist.
        ModelStoreError: a file is not a GGUF file of the right kind.
        MissingExtra: xllamacpp is not installed.
    """
    if not spec.value:
        raise ConfigError("llamacpp: names no model; write llamacpp:/path/model.gguf")
    options = spec.take(mmproj=str, adapter=str, scale=float, ctx=int, parallel=int, threads=int)
    model = _file(spec.value, kind="model")
    return _open(spec, options, model=str(model), managed=False, ctx=8192, parallel=4)


def _open(
    spec: EngineSpec,
    options: dict[str, Any],
    *,
    model: str,
    managed: bool,
    ctx: int,
    parallel: int,
) -> LlamaCppEngine:
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("the llama.cpp engine", "local")
    files = {
        kind: _file(options[kind], kind=kind) for kind in ("mmproj", "adapter") if kind in options
    }
    scale = options.get("scale", 1.0)
    if not math.isfinite(scale):
        raise ConfigError(f"{spec}: scale must be a finite number")
    for name, least, most in (("ctx", 256, 2**20), ("parallel", 1, 64), ("threads", 1, 1024)):
        if not least <= options.get(name, least) <= most:
            raise ConfigError(f"{spec}: {name}={options[name]} is out of range ({least} to {most})")
    config = BaseConfig(
        model=model,
        managed=managed,
        mmproj=files.get("mmproj"),
        ctx=options.get("ctx", ctx),
        parallel=options.get("parallel", parallel),
        threads=options.get("threads"),
    )
    # With absolute paths, so that the spec means the same everywhere.
    absolute = EngineSpec(
        scheme=spec.scheme,
        value=spec.value and model,
        options={**spec.options, **{kind: str(path) for kind, path in files.items()}},
    )
    return LlamaCppEngine(config, adapter=files.get("adapter"), scale=scale, spec=str(absolute))


def _file(name: str, *, kind: str) -> Path:
    """An existing GGUF file of a kind, as an absolute path."""
    path = Path(name).expanduser().absolute()
    header = read_header(path, lambda key: key in {"general.type", "general.architecture"})
    is_mmproj = header.get("general.architecture") == "clip"
    found = "mmproj" if is_mmproj else str(header.get("general.type", "model"))
    if found != kind:
        raise ModelStoreError(f"{path} is a GGUF file of kind {found!r}, not {kind!r}")
    return path
