"""One model loaded by llama.cpp in this process, through xllamacpp.

xllamacpp wraps llama.cpp's own HTTP server and calls its handlers directly: continuous batching,
prompt cache, grammars, adapters. What its authors do not say, found by trying (2026.10):

- The server always listens. We give it a socket file in a private directory (where there are
  such; elsewhere a loopback port) and a random API key, so that nobody else can use it.
- Freeing a server before its loop has started hangs for ever, so loading ends with a request.
- With its cache of prompts in memory on, a prompt computed with one adapter may be reused for
  another; it is switched off. Every slot still keeps its last prompt, and checks the adapter.
- A streamed request reports progress while it reads the prompt, which is where it can be stopped,
  and does not echo a continued prefix; a request that is not streamed does. So all are streamed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmguard.engines.control_tokens import ControlTokens, read_control_tokens
from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineUnavailable,
    MissingExtra,
    ModelStoreError,
)

_BATCH = 512
"""Tokens computed at once; also how soon a request can be stopped while its prompt is read."""
_LARGE = 2**30  # bytes; above, llama.cpp is asked to fit the model to the graphics card (0.2 s)
_LONGEST_SOCKET_PATH = 100  # bytes; 104 on macOS and 108 on Linux, with the final NUL
_CLOSED = "the engine was closed, and the answer stopped; open it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """What two engines must agree on to share one loaded model.

    Attributes:
        model: path of the GGUF file, or the name of a model of our store.
        managed: whether ``model`` is such a name.
        mmproj: the model's eyes: path of the projector's GGUF file.
        ctx: tokens that one request may use, prompt and answer together.
        parallel: requests computed at once.
        threads: CPU threads; ``None`` leaves the choice to llama.cpp.
    """

    model: str
    managed: bool = False
    mmproj: Path | None = None
    ctx: int
    parallel: int
    threads: int | None = None


Chunk = Mapping[str, Any]
"""A chunk of a streamed response, or the body of a request: decoded JSON."""


class LoadedModel:
    """A loaded model and the threads that wait for it. Create with `load`."""

    def __init__(
        self,
        server: Any,
        *,
        adapters: tuple[Path, ...],
        control_tokens: ControlTokens,
        parallel: int,
        directory: Path | None,
    ) -> None:
        self._server = server
        self._directory = directory
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="vlmguard-llamacpp")
        self.adapters = adapters
        self.control_tokens = control_tokens

    @classmethod
    def load(cls, config: BaseConfig, path: Path, adapters: tuple[Path, ...]) -> LoadedModel:
        """Load a model with adapters. Blocks.

        Raises:
            MissingExtra: xllamacpp is not installed.
            ConfigError: a file does not exist.
            ModelStoreError: a file is not what it should be.
        """
        control_tokens = read_control_tokens(path)
        xllamacpp = _xllamacpp()
        params = _params(xllamacpp, config, path, adapters)
        directory = _private_address(params)
        try:
            server = xllamacpp.Server(params)
            server.handle_completions({"prompt": "a", "max_tokens": 1})  # see above: its loop runs
        except (RuntimeError, ValueError, MemoryError) as error:
            _remove(directory)
            raise ModelStoreError(_cannot_load(config, path, adapters)) from error
        return cls(
            server,
            adapters=adapters,
            control_tokens=control_tokens,
            parallel=config.parallel,
            directory=directory,
        )

    async def run(self, body: Chunk, stop: threading.Event) -> list[Chunk]:
        """All chunks of one answer. Cancelling, or setting ``stop``, ends the generation.

        Raises:
            EngineRejected, EngineUnavailable: as llama.cpp says.
        """
        chunks: list[Chunk] = []
        call = self._submit(body, stop, chunks.append)
        try:
            await asyncio.wrap_future(call)
            _refuse_if_closed(stop)
        finally:
            stop.set()
        return chunks

    async def stream(self, body: Chunk, stop: threading.Event) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer as they come. Closing the iterator ends the generation.

        Raises:
            EngineRejected, EngineUnavailable: as llama.cpp says.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def put(chunk: Chunk | None) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, chunk)
            except RuntimeError:  # the event loop has been closed: nobody reads on
                stop.set()

        call = self._submit(body, stop, put)
        call.add_done_callback(lambda _: put(None))
        try:
            while (chunk := await queue.get()) is not None:
                yield chunk
            await asyncio.wrap_future(call)  # raises what went wrong
            _refuse_if_closed(stop)
        finally:
            stop.set()
            call.cancel()

    def _submit(
        self, body: Chunk, stop: threading.Event, take: Callable[[Chunk], None]
    ) -> Future[None]:
        request = {
            **body,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
        }
        try:
            return self._threads.submit(_call, self._server, request, stop, take)
        except RuntimeError:  # the threads have been shut down
            raise EngineRejected(_CLOSED) from None

    def close(self) -> None:
        """Free the model. Blocks until running requests have ended; stop them before."""
        self._threads.shutdown(wait=True)
        del self._server
        _remove(self._directory)


def _refuse_if_closed(stop: threading.Event) -> None:
    if stop.is_set():  # by someone else: the iterator is open, the task is not cancelled
        raise EngineRejected(_CLOSED)


def _call(
    server: Any, request: Chunk, stop: threading.Event, take: Callable[[Chunk], None]
) -> None:
    """One request, in a thread of its own."""
    problem: Chunk | None = None
    finished = False

    def on_chunks(arrived: Chunk | list[Chunk]) -> bool:
        nonlocal problem, finished
        for chunk in arrived if isinstance(arrived, list) else [arrived]:
            if "error" in chunk:
                problem = chunk["error"]
            elif "prompt_progress" not in chunk:
                finished = finished or "usage" in chunk  # the last one carries it
                take(chunk)
        return problem is not None or stop.is_set()

    if stop.is_set():
        return
    try:
        server.handle_chat_completions(request, on_chunks)
    except (RuntimeError, ValueError) as error:
        raise EngineRejected(f"llama.cpp refused the request: {error}") from error
    if problem is not None:
        raise _rejected(problem)
    if not finished and not stop.is_set():
        raise EngineUnavailable("llama.cpp ended the answer before it was complete")


def _rejected(problem: Chunk) -> EngineRejected | EngineUnavailable:
    message, code = str(problem.get("message", problem)), problem.get("code", 500)
    if problem.get("type") == "exceed_context_size_error":
        return EngineRejected(
            f"the prompt is too long for the context: {problem.get('n_prompt_tokens')} tokens, "
            f"{problem.get('n_ctx')} fit; shorten it, or open the model with a larger ?ctx=",
            context_exceeded=True,
            status=code,
        )
    if code >= 500:
        return EngineUnavailable(f"llama.cpp failed: {message}")
    return EngineRejected(f"llama.cpp refused the request: {message}", status=code)


def _xllamacpp() -> Any:
    try:
        import xllamacpp  # noqa: PLC0415 - heavy, and optional
    except ImportError as error:
        raise MissingExtra("the llama.cpp engine", "local") from error
    return xllamacpp


def _params(xllamacpp: Any, config: BaseConfig, path: Path, adapters: tuple[Path, ...]) -> Any:
    for file in (config.mmproj, *adapters):
        if file is not None and not file.is_file():
            raise ConfigError(f"{file}: no such file")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    if config.mmproj is not None:
        params.mmproj.path = str(config.mmproj)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 0.0) for file in adapters]
    # Every slot gets a context of its own. One shared context ("unified") would be smaller, but
    # every request then attends over the others' tokens too: half the speed for eight prompts of
    # 1,300 tokens.
    params.n_ctx = config.ctx * config.parallel
    params.n_parallel = config.parallel
    params.n_batch = params.n_ubatch = _BATCH
    if config.threads is not None:
        params.cpuparams.n_threads = config.threads
    params.cache_ram_mib = 0
    params.fit_params = path.stat().st_size > _LARGE
    params.warmup = False  # loading ends with a request anyway
    params.use_jinja = True
    params.verbosity = -1
    params.ui = params.endpoint_slots = False
    params.n_threads_http = 1
    return params


def _private_address(params: Any) -> Path | None:
    """Make the server listen where only this user may, and answer nobody without the key.

    Returns the directory of the socket, to be removed in the end.
    """
    params.api_keys = [secrets.token_urlsafe(32)]
    if hasattr(socket, "AF_UNIX"):
        directory = Path(tempfile.mkdtemp(prefix="vlmguard-"))
        address = directory / "llama.sock"
        if len(os.fsencode(address)) < _LONGEST_SOCKET_PATH:
            params.hostnames = [str(address)]
            return directory
        _remove(directory)
    params.hostnames, params.port = ["127.0.0.1"], 0
    return None


def _remove(directory: Path | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def _cannot_load(config: BaseConfig, path: Path, adapters: tuple[Path, ...]) -> str:
    others = [str(file) for file in (config.mmproj, *adapters) if file is not None]
    beside = f" with {', '.join(others)}" if others else ""
    memory = f"{config.parallel} contexts of {config.ctx} tokens"
    return (
        f"llama.cpp cannot load {path}{beside}: the file is incomplete, of a kind that this "
        f"llama.cpp does not know, does not fit the others, or there is no memory for {memory} "
        f"(lower ?ctx= or ?parallel=)"
    )
