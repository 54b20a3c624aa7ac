"""What the store tells a person while it works. Everything goes to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_NARROW = 72  # columns under which a bar with speed and remaining time would wrap


def say(message: str) -> None:
    """One line to standard error, wrapped by the terminal and not by us."""
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def transfer(what: str, *, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how far a transfer has come.

    A terminal gets a bar; a file or a pipe gets nothing, so that logs stay readable.

    Args:
        what: a word or two, e.g. ``"smollm2"``.
        total: bytes in all.
        done: bytes that are already there.

    Yields:
        A function to call with the number of bytes that are there now.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _now: None
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=None)]
    if console.width < _NARROW:
        columns.append(TaskProgressColumn())
    else:
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda now: progress.update(task, completed=now)


def megabytes(size: int) -> str:
    """A size for people: ``98 MB`` (decimal, as download pages count)."""
    if size < 1_000_000:
        return f"{size / 1000:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < 10_000_000_000 else f"{size / 1e9:.0f} GB"
