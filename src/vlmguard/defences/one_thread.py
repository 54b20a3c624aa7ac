"""Models of transformers that load when first used and work in a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

Model = TypeVar("Model")
Result = TypeVar("Result")


class OneThread(Generic[Model]):
    """Runs work with a model, one piece after the other, outside the event loop.

    Args:
        load: makes the model; called once, by the first piece of work.
        name: of the thread.
    """

    def __init__(self, load: Callable[[], Model], *, name: str) -> None:
        self._load = load
        self._model: Model | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[[Model], Result]) -> Result:
        """The result of ``work`` with the loaded model."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)

    def _work(self, work: Callable[[Model], Result]) -> Result:
        if self._model is None:
            self._model = self._load()
        return work(self._model)


def local_or_hub(model: str) -> str:
    """An absolute path where there is such a folder, else the name as it is."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.exists() else model
