"""Models that llama.cpp has loaded, shared by all engines of this process.

A model is loaded once for every `BaseConfig`, on first use and in a thread, with all adapters that
engines have registered by then. Engines hold *copies*; the last one to let go frees the model. An
adapter registered after loading gets a second copy (the weights are mapped from the file and
shared, only the context is new), so running requests go on undisturbed.

Nothing here belongs to an event loop: `asyncio.run` may be called any number of times.
"""

from __future__ import annotations

import atexit
import itertools
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from vlmguard import models
from vlmguard.engines.llamacpp_model import BaseConfig, LoadedModel


@dataclass(eq=False, slots=True, kw_only=True)
class ModelCopy:
    """One loaded copy of a model, or one that is being loaded.

    Attributes:
        config: which model, and how.
        adapters: those in it, in the order of their ids.
        model: the loaded model, once it is there.
        holders: how many engines use it; the pool's business.
    """

    config: BaseConfig
    adapters: tuple[Path, ...]
    model: Future[LoadedModel] = field(default_factory=Future)
    holders: int = 0

    def has(self, adapter: Path | None) -> bool:
        """Whether an engine with this adapter can use it."""
        return adapter is None or adapter in self.adapters

    def failed(self) -> bool:
        """Whether loading has failed."""
        return self.model.done() and self.model.exception() is not None

    def free(self) -> None:
        """Free the model; one that is still being loaded, as soon as it is."""
        self.model.add_done_callback(_close)


class ModelPool:
    """All loaded models. Thread-safe; engines use the one in `POOL`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registered: dict[BaseConfig, Counter[Path]] = {}
        self._copies: list[ModelCopy] = []

    def register(self, config: BaseConfig, adapter: Path) -> None:
        """Announce an adapter, so that it is there when the model is loaded."""
        with self._lock:
            self._registered.setdefault(config, Counter())[adapter] += 1

    def unregister(self, config: BaseConfig, adapter: Path) -> None:
        """Take an announcement back."""
        with self._lock:
            known = self._registered[config]
            known[adapter] -= 1
            self._registered[config] = +known  # without those at zero

    def hold(self, config: BaseConfig, adapter: Path | None) -> ModelCopy:
        """A copy of the model that has ``adapter``; starts to load one when there is none.

        Returns at once; wait for ``copy.model``, and let go of the copy even when that fails.
        """
        with self._lock:
            for copy in self._copies:
                if copy.config == config and copy.has(adapter) and not copy.failed():
                    break
            else:
                copy = ModelCopy(config=config, adapters=self._adapters(config, adapter))
                self._copies.append(copy)
                name = f"vlmguard-load-{next(_NUMBERS)}"
                threading.Thread(target=_load, args=(copy,), name=name, daemon=True).start()
            copy.holders += 1
            return copy

    def _adapters(self, config: BaseConfig, asked: Path | None) -> tuple[Path, ...]:
        """Those to load: a file that has gone since must only fail the engine that asks for it."""
        known = self._registered.get(config, Counter[Path]())
        return tuple(path for path in known if path == asked or path.is_file())

    def let_go(self, copy: ModelCopy) -> None:
        """Give a copy back. Blocks while the model is freed when this was its last holder."""
        with self._lock:
            copy.holders -= 1
            if copy.holders > 0 or copy not in self._copies:
                return
            self._copies.remove(copy)
        copy.free()

    def copies(self, config: BaseConfig) -> int:
        """How many copies of a model there are."""
        with self._lock:
            return sum(copy.config == config for copy in self._copies)

    def close(self) -> None:
        """Free everything, held or not; for the end of the process."""
        with self._lock:
            copies, self._copies = self._copies, []
        for copy in copies:
            copy.free()


_NUMBERS = itertools.count(1)


def _load(copy: ModelCopy) -> None:
    config = copy.config
    try:
        path = models.ensure(config.model) if config.managed else Path(config.model)
        copy.model.set_result(LoadedModel.load(config, path, copy.adapters))
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the model
        copy.model.set_exception(error)


def _close(model: Future[LoadedModel]) -> None:
    if model.exception() is None:
        model.result().close()


POOL = ModelPool()
atexit.register(POOL.close)  # llama.cpp must be shut down before the interpreter is
