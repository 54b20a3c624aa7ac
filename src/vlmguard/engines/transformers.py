"""Models run by Hugging Face transformers: any vision-language family, and text models.

::

    hf:org/model                        from the Hugging Face Hub, or its cache
    hf:/path/to/folder                  as `save_pretrained` writes it
    hf:org/model?adapter=/path/to/peft/folder&dtype=bfloat16&device=cuda:0

The first request loads the model, in a thread. Requests wait for each other: first come, first
served. For many at once use a server such as vLLM and the engine ``openai:``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vlmguard.engines.base import Capability, Sampling, require
from vlmguard.engines.spec import EngineSpec
from vlmguard.engines.transformers_weights import Weights, check_adapter
from vlmguard.errors import ConfigError, EngineRejected, MissingExtra
from vlmguard.models.store import is_offline
from vlmguard.types import Chat, Completion, Delta

if TYPE_CHECKING:
    from vlmguard.engines.transformers_host import Host


def open_transformers(spec: EngineSpec) -> TransformersEngine:
    """Open ``hf:MODEL``. Cheap: checks the options, and loads nothing yet.

    Options: ``adapter`` (folder of a PEFT LoRA), ``dtype`` (``auto``, the checkpoint's own; or
    ``bfloat16``, ``float16``, ``float32``), ``device`` (``auto``, ``cpu``, ``cuda``, ``cuda:N``),
    ``revision``, ``max_pixels`` (bigger pictures are scaled down before the model's own processor
    sees them) and ``trust_remote_code`` (run Python that comes with the model).

    Raises:
        ConfigError: no such folder, a malformed model name, an unknown option or value.
        MissingExtra: torch, transformers or, for an adapter, peft is not installed.
    """
    options = spec.take(
        adapter=str,
        dtype=str,
        device=str,
        revision=str,
        max_pixels=int,
        trust_remote_code=bool,
    )
    adapter = options.pop("adapter", None)
    max_pixels = options.pop("max_pixels", None)
    assert isinstance(max_pixels, int | None)
    if not spec.value:
        raise ConfigError(f"{spec}: name a model: hf:org/model or hf:/path/to/folder")
    if max_pixels is not None and max_pixels < 1:
        raise ConfigError(f"{spec}: max_pixels={max_pixels} must be at least 1")
    needed = ("torch", "transformers", "peft") if adapter else ("torch", "transformers")
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise MissingExtra("the transformers engine", "hf")
    folder = Path(spec.value).expanduser()
    return TransformersEngine(
        spec=str(spec),
        weights=Weights(
            model=str(folder.resolve()) if folder.exists() else spec.value,
            offline=is_offline(),
            **options,  # type: ignore[arg-type]
        ),
        adapter=check_adapter(Path(str(adapter)).expanduser().resolve()) if adapter else None,
        max_pixels=max_pixels,
    )


class TransformersEngine:
    """A model in this process. Safe to use from several tasks, threads and event loops.

    Engines that differ only in ``adapter`` or ``max_pixels`` share one copy of the weights.

    Args:
        spec: the string that opens it again.
        weights: which model, where and how.
        adapter: folder of a PEFT LoRA to answer with.
        max_pixels: bigger pictures are scaled down.
    """

    def __init__(
        self,
        *,
        spec: str,
        weights: Weights,
        adapter: Path | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._adapter = adapter
        self._max_pixels = max_pixels
        self._host: Host | None = None
        self._lock = threading.Lock()

    @property
    def spec(self) -> str:
        """The string that opens this engine again."""
        return self._spec

    @cached_property
    def capabilities(self) -> frozenset[Capability]:
        """By the model's configuration file, which the first use reads, or fetches from the Hub.

        Raises:
            ConfigError: there is no such model, or it cannot be fetched.
        """
        from vlmguard.engines.transformers_host import takes_pictures  # noqa: PLC0415

        found = {
            Capability.STREAMING,
            Capability.LOGPROBS,
            Capability.PREFIX,
            Capability.ADAPTERS,
        }
        if takes_pictures(self._weights):
            found.add(Capability.VISION)
        return frozenset(found)

    async def load(self) -> None:
        """Fetch and load the weights.

        Raises:
            ConfigError, MissingExtra: they cannot be had.
        """
        await asyncio.to_thread(lambda: self.capabilities)
        from vlmguard.engines.transformers_host import acquire  # noqa: PLC0415

        with self._lock:
            if self._host is None:
                self._host = acquire(self._weights)
            loading = self._host.submit(lambda _: None)
        await asyncio.wrap_future(loading)

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once. Cancelling stops the model at the next token.

        Raises:
            EngineRejected: too long for the model, or its template refuses the chat.
            EngineUnavailable: out of memory.
            ConfigError: the model or the adapter cannot be loaded.
            InputError: a picture cannot be decoded.
        """
        cancelled = threading.Event()
        future = await self._submit(chat, sampling, lambda _: None, cancelled)
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancelled.set()

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece; errors as for `generate`. Closing stops the model."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        cancelled = threading.Event()

        def put(piece: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody listens
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future = await self._submit(chat, sampling, put, cancelled)
        future.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield Delta(text=piece)
            completion = future.result()
            yield Delta(text="", finish_reason=completion.finish_reason, usage=completion.usage)
        finally:
            cancelled.set()
            future.cancel()

    async def aclose(self) -> None:
        """Free the model, unless another engine shares it. A later call loads it again."""
        with self._lock:
            host, self._host = self._host, None
        if host is None:
            return
        from vlmguard.engines.transformers_host import release  # noqa: PLC0415

        freed = release(host)
        if freed is not None:
            await asyncio.wrap_future(freed)

    async def _submit(
        self,
        chat: Chat,
        sampling: Sampling,
        show: Callable[[str], None],
        cancelled: threading.Event,
    ) -> Future[Completion]:
        # Importing torch and reading the configuration must not hold up the event loop.
        await asyncio.to_thread(lambda: self.capabilities)
        require(self, chat, sampling)
        _check(self._spec, chat, sampling)
        from vlmguard.engines.transformers_generate import Job  # noqa: PLC0415
        from vlmguard.engines.transformers_host import acquire  # noqa: PLC0415

        job = Job(
            spec=self._spec,
            chat=chat,
            sampling=sampling,
            adapter=self._adapter,
            max_pixels=self._max_pixels,
            show=show,
            cancelled=cancelled,
        )
        with self._lock:
            if self._host is None:
                self._host = acquire(self._weights)
            return self._host.submit(job.run)


def _check(spec: str, chat: Chat, sampling: Sampling) -> None:
    if not chat.messages:
        raise EngineRejected(f"{spec}: the chat has no messages")
    if sampling.max_tokens < 1:
        raise EngineRejected(f"{spec}: max_tokens={sampling.max_tokens} must be at least 1")
    if sampling.temperature < 0:
        raise EngineRejected(f"{spec}: temperature={sampling.temperature} must not be negative")
    if not 0 < sampling.top_p <= 1:
        raise EngineRejected(f"{spec}: top_p={sampling.top_p} must be above 0 and at most 1")
