"""Lines of text as geometry: which are the same, and in which order they are read. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

Turn = Literal[0, 90, 180, 270]
"""How far a line's letters are turned clockwise from upright, in degrees."""


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line as the recognizer gives it.

    Attributes:
        text: as read.
        confidence: 0..1.
        box: left, top, right, bottom in pixels.
        turn: of its letters.
        hidden: low contrast or tiny.
    """

    text: str
    confidence: float
    box: Box
    turn: Turn = 0
    hidden: bool = False

    @property
    def height(self) -> float:
        """Of the letters, in pixels, also where they lie on their side."""
        return min(self.box[3] - self.box[1], self.box[2] - self.box[0])

    def moved(self, left: float, top: float, scale: float = 1.0) -> Line:
        """The line in another frame of reference: scaled first, then shifted."""
        x0, y0, x1, y1 = self.box
        return replace(
            self,
            box=(x0 * scale + left, y0 * scale + top, x1 * scale + left, y1 * scale + top),
        )


def covered(box: Box, lines: Sequence[Line]) -> bool:
    """Whether more than half of ``box`` lies within one of the lines."""
    return any(2 * _shared(box, line.box) > _area(box) for line in lines)


def merged(frames: Sequence[Sequence[Line]]) -> list[Line]:
    """The lines of all frames, those left out that say the same at the same place as before."""
    kept: list[Line] = []
    for lines in frames:
        earlier = list(kept)
        kept += [
            line
            for line in lines
            if not any(
                _bare(line.text) == _bare(other.text) and covered(line.box, [other])
                for other in earlier
            )
        ]
    return kept


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """Top to bottom, within a row left to right, as seen by a reader whose page is upright.

    The page is turned as most of its characters are.
    """
    if not lines:
        return []
    weight: dict[Turn, int] = {0: 0, 90: 0, 180: 0, 270: 0}
    for line in lines:
        weight[line.turn] += len(line.text)
    page = max(weight, key=lambda turn: weight[turn])
    placed = sorted(((_upright(line.box, page), line) for line in lines), key=lambda p: p[0][1])
    rows: list[list[tuple[Box, Line]]] = []
    for box, line in placed:
        if rows and _same_row(box, [other for other, _ in rows[-1]]):
            rows[-1].append((box, line))
        else:
            rows.append([(box, line)])
    return [line for row in rows for _, line in sorted(row, key=lambda p: p[0][0])]


def _same_row(box: Box, row: Sequence[Box]) -> bool:
    middle = (box[1] + box[3]) / 2
    height = min(box[3] - box[1], median(other[3] - other[1] for other in row))
    return abs(middle - median((other[1] + other[3]) / 2 for other in row)) < height / 2


def _upright(box: Box, page: int) -> Box:
    """The box as it lies on the page once that is turned upright (up to a shift)."""
    x0, y0, x1, y1 = box
    return {
        0: (x0, y0, x1, y1),
        90: (y0, -x1, y1, -x0),
        180: (-x1, -y1, -x0, -y0),
        270: (-y1, x0, -y0, x1),
    }[page]


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


def _area(box: Box) -> float:
    return max(1.0, box[2] - box[0]) * max(1.0, box[3] - box[1])


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
