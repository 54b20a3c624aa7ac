"""Text in pictures, also text that eyes overlook, through RapidOCR (PP-OCR models).

A frame is read in up to three passes:

1. *Whole*, at a size that keeps a six-pixel letter legible in pictures up to about 1200x1200.
2. *Fine*, for larger pictures: at full size, only where there are strokes as thin as small text's.
3. *Faint*, on a copy whose local contrast is made equal everywhere: only where there are weak
   contrasts, and in photographs, whose noise is one everywhere, at half the size. What this pass
   adds is marked hidden, unless its contrast in the picture itself is strong after all.

The figures behind these choices come from ``benchmarks/perception.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from PIL import Image as PILImage

from vlmguard.errors import MissingExtra
from vlmguard.perception.base import Findings
from vlmguard.perception.lines import Line, covered, in_reading_order, merged
from vlmguard.types import TextBox

if TYPE_CHECKING:
    from vlmguard.perception.enhance import Pixels

_COMFORTABLE = 600_000  # pixels; smaller pictures are enlarged, at most twice: finds more lines
_WHOLE = 1_500_000  # pixels; larger pictures are scaled down for the first pass
_ALL_FRAMES = 4_000_000  # pixels of the first passes of all frames of an animation together
_TINY = 200  # of a picture's longer side: a line lower than this part of it is tiny

_WELL_READ = 16  # pixels in a picture that was scaled down; lower lines are found, but blurred

_EASILY_SEEN = 48  # gray levels in the channel where a line stands out most
_DRAWN = 0.3  # of a picture's pixels without any contrast: it is drawn, not photographed

_FLOOR = 0.5  # confidence; RapidOCR's own
_FLOOR_SINGLE = 0.9  # for a single character, which textures are often taken for
_FLOOR_FAINT = 0.8  # on an enhanced copy, where noise looks like strokes
_SHORTEST_FAINT = 3  # characters


class OCR:
    """Reads the text in a picture.

    Args:
        faint: look for hidden text too (the third pass).
        threads: that one network may use; by default half of the cores, at most four. More
            threads slow down a busy machine, where onnxruntime's threads wait for each other.

    Raises:
        MissingExtra: rapidocr, onnxruntime, OpenCV or numpy is not installed.
    """

    name = "ocr"

    def __init__(self, *, faint: bool = True, threads: int | None = None) -> None:
        try:
            from vlmguard.perception import enhance, reader  # noqa: PLC0415  (optional, heavy)
        except ImportError as error:
            raise MissingExtra("reading text in images", "local") from error
        self._enhance = enhance
        self._resized = reader.resized
        self._reader = reader.Reader(threads=threads or _threads())
        self._faint = faint
        self.version = f"rapidocr-{version('rapidocr')}/1{'' if faint else '-plain'}"

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        """All lines of all frames in reading order; what several frames show stands once."""
        limit = min(_WHOLE, _ALL_FRAMES // len(frames))
        lines = merged([in_reading_order(self._read(frame, limit)) for frame in frames])
        return Findings(
            text=tuple(
                TextBox(
                    text=line.text, confidence=line.confidence, box=line.box, hidden=line.hidden
                )
                for line in lines
            )
        )

    def _read(self, frame: PILImage.Image, limit: int) -> list[Line]:
        pixels = self._enhance.bgr(frame)
        content = self._enhance.content(pixels)
        if content is None:
            return []
        pixels = content.cut(pixels)
        scale = min(2.0, math.sqrt(min(_COMFORTABLE, limit) / content.area))
        if scale < 1.1:
            scale = min(1.0, math.sqrt(limit / content.area))
        lines = [line for line in self._reader.read(pixels, scale=scale) if _trusted(line)]
        if scale < 1:
            lines = self._fine(pixels, lines, unsure=_WELL_READ / scale)
        tiny = max(frame.size) / _TINY
        lines = [replace(line, hidden=line.height < tiny) for line in lines]
        if self._faint:
            lines += self._hidden(pixels, scale, lines)
        return [line.moved(content.left, content.top) for line in lines]

    def _fine(self, pixels: Pixels, known: Sequence[Line], *, unsure: float) -> list[Line]:
        """All lines of a large picture: the known ones, those that are lower than ``unsure``
        pixels read again, and new ones.
        """
        sure = [line for line in known if line.height >= unsure]
        found: list[Line] = []
        for region in self._enhance.fine_regions(pixels):
            left, top = region.left, region.top
            seen = [line.moved(-left, -top) for line in (*sure, *found)]
            lines = self._reader.read(region.cut(pixels), known=seen)
            found += [line.moved(left, top) for line in lines if _trusted(line)]
        blurred = [line for line in known if line.height < unsure]
        replaced = [line for line in blurred if any(covered(new.box, [line]) for new in found)]
        return [*sure, *found, *(line for line in blurred if line not in replaced)]

    def _hidden(self, pixels: Pixels, scale: float, known: Sequence[Line]) -> list[Line]:
        """Text of low contrast."""
        size = min(1.0, scale)
        small = self._resized(pixels, size)
        seen = [line.moved(0, 0, size) for line in known]
        faint = self._enhance.faintness(small, self._enhance.covering(small, seen))
        region = faint.region
        if region is None:
            return []
        zoom = max(1.0, scale)
        if faint.plain < _DRAWN and region.area > small.shape[0] * small.shape[1] / 4:
            zoom /= 2
        lines = self._reader.read(
            region.cut(self._enhance.normalized(small)),
            scale=zoom,
            known=[line.moved(-region.left, -region.top) for line in seen],
        )
        found = [
            line.moved(region.left, region.top)
            for line in lines
            if line.confidence >= _FLOOR_FAINT and len(line.text) >= _SHORTEST_FAINT
        ]
        # The first pass may have missed a line that everybody sees: that one is not hidden.
        return [
            replace(
                line.moved(0, 0, 1 / size),
                hidden=self._enhance.contrast(small, line.box) <= _EASILY_SEEN,
            )
            for line in found
        ]


def _threads() -> int:
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def _trusted(line: Line) -> bool:
    return line.confidence >= (_FLOOR if len(line.text) > 1 else _FLOOR_SINGLE)
