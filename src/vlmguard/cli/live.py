"""Progress of a long run in a terminal, or line by line where there is none."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from rich.console import RenderableType
from rich.live import Live

from vlmguard.cli.show import err

_REDRAW_S = 0.5
_LINE_S = 10.0


class Display(ABC):
    """Shows progress: a live table in a terminal, a line every ten seconds elsewhere."""

    async def follow(self) -> None:
        """Until cancelled; the last state stays on the screen."""
        if not err.is_terminal:
            await self._lines()
            return
        with Live(self._table(), console=err, auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.sleep(_REDRAW_S)
                    live.update(self._table(), refresh=True)
            finally:
                live.update(self._table(), refresh=True)

    async def _lines(self) -> None:
        try:
            while True:
                await asyncio.sleep(_LINE_S)
                err.print(self._line(), soft_wrap=True)
        finally:
            err.print(self._line(), soft_wrap=True)

    @abstractmethod
    def _table(self) -> RenderableType:
        """The whole state."""

    @abstractmethod
    def _line(self) -> str:
        """The same in a line."""
