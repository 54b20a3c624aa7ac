"""Making visible what eyes overlook: faint and very small text. Pure functions on pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from vlmguard.perception.lines import Box, Line

Pixels = NDArray[np.uint8]
"""Shape (height, width, 3), BGR, as OpenCV and RapidOCR have it."""

_WINDOW = 31  # pixels; wider than a letter's strokes, narrower than most shading
_GAIN = 64  # gray levels a local standard deviation
_NEAR = 9  # pixels; about a letter
_BLUR = 16  # pixels; two blocks of a JPEG
_FAINT = 24  # gray levels; stronger text is found without help
_CELL = 64  # pixels
_STRIP = 8  # cells; height of what is looked at together
_LONGEST = 40  # cells; its width
_RIDGE = 40  # gray levels by which a thin stroke stands out on both sides
_BUSY = 24  # such pixels in a cell: about two small letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A rectangle of whole pixels; ``right`` and ``bottom`` are just outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """In pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def cut(self, pixels: Pixels) -> Pixels:
        """The part of a picture within."""
        return np.ascontiguousarray(pixels[self.top : self.bottom, self.left : self.right])


def bgr(frame: PILImage.Image) -> Pixels:
    """An RGB picture as an array."""
    return np.ascontiguousarray(np.asarray(frame, np.uint8)[:, :, ::-1])


def content(pixels: Pixels) -> Region | None:
    """The rectangle within an even border, with some of it around; ``None`` for an even picture."""
    different = np.zeros(pixels.shape[:2], np.bool_)
    for channel in range(pixels.shape[2]):
        different |= pixels[:, :, channel] != pixels[0, 0, channel]
    return _around(different, margin=_BLUR)


def normalized(pixels: Pixels) -> Pixels:
    """Every channel with its local mean removed and its local contrast made equal.

    A difference of a single gray level on plain paper becomes as strong as black on white, in
    whichever channel it is; strong contrasts stay strong.
    """
    values = pixels.astype(np.float32)
    window = (_WINDOW, _WINDOW)
    mean = cv2.blur(values, window)
    variance = cv2.blur(values * values, window) - mean * mean
    spread = np.sqrt(np.maximum(variance, 0)) + 1.0
    return np.clip(128 + _GAIN * (values - mean) / spread, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faintness:
    """Where a picture has contrasts that are there but weak.

    Attributes:
        region: the smallest rectangle around all of them; ``None`` when there are none.
        plain: share 0..1 of the picture without any contrast: near 1 for drawn pictures, near 0
            for photographs, whose noise is a weak contrast everywhere.
    """

    region: Region | None
    plain: float


def faintness(pixels: Pixels, known: NDArray[np.bool_]) -> Faintness:
    """Look for weak contrasts.

    Args:
        pixels: the picture.
        known: shape (height, width), where text was found already.
    """
    kernel = np.ones((_NEAR, _NEAR), np.uint8)
    span = cv2.subtract(cv2.dilate(pixels, kernel), cv2.erode(pixels, kernel)).max(axis=2)
    weak = (span > 0) & (span <= _FAINT) & ~known
    return Faintness(region=_around(weak, margin=_WINDOW // 2), plain=float((span == 0).mean()))


def contrast(pixels: Pixels, box: Box) -> float:
    """Gray levels between the light and the dark of a line, in the channel where it is most."""
    left, top, right, bottom = (round(side) for side in box)
    part = pixels[max(0, top) : max(top, bottom) + 1, max(0, left) : max(left, right) + 1]
    low, high = np.percentile(part.reshape(-1, part.shape[-1]), (3, 97), axis=0)
    return float((high - low).max())


def covering(pixels: Pixels, lines: Sequence[Line]) -> NDArray[np.bool_]:
    """Shape (height, width): where the lines lie, with the blur that surrounds letters in JPEGs."""
    mask = np.zeros(pixels.shape[:2], np.bool_)
    for line in lines:
        left, top, right, bottom = (round(side) for side in line.box)
        mask[max(0, top - _BLUR) : bottom + _BLUR, max(0, left - _BLUR) : right + _BLUR] = True
    return mask


def fine_regions(pixels: Pixels) -> list[Region]:
    """Where a large picture may hold text too small to survive scaling down.

    Small letters have strokes of one or two pixels that stand out on both sides, as few things in
    photographs do. The regions are wide and low, and end where such strokes end, so that lines of
    text stay whole.
    """
    busy = _busy_cells(pixels)
    height, width = pixels.shape[:2]
    regions = []
    for top in range(0, busy.shape[0], _STRIP):
        strip = busy[top : top + _STRIP]
        for first, last in _runs(np.flatnonzero(strip.any(axis=0)).tolist()):
            rows = np.flatnonzero(strip[:, first : last + 1].any(axis=1))
            regions.append(
                Region(
                    left=max(0, (first - 1) * _CELL),
                    top=max(0, (top + int(rows[0]) - 1) * _CELL),
                    right=min(width, (last + 2) * _CELL),
                    bottom=min(height, (top + int(rows[-1]) + 2) * _CELL),
                )
            )
    return regions


def _busy_cells(pixels: Pixels) -> NDArray[np.bool_]:
    """Which squares of the picture have as many thin strokes as two small letters."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).astype(np.int16)
    ridges = np.zeros(gray.shape, np.bool_)
    ridges[:, 2:-2] |= _stands_out(gray[:, 2:-2], gray[:, :-4], gray[:, 4:])
    ridges[2:-2, :] |= _stands_out(gray[2:-2, :], gray[:-4, :], gray[4:, :])
    height, width = gray.shape
    rows, columns = -(-height // _CELL), -(-width // _CELL)
    padded = np.zeros((rows * _CELL, columns * _CELL), np.bool_)
    padded[:height, :width] = ridges
    busy: NDArray[np.bool_] = padded.reshape(rows, _CELL, columns, _CELL).sum(axis=(1, 3)) >= _BUSY
    return busy


def _runs(cells: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last cell of every stretch; a gap of one cell does not end it."""
    start = 0
    for at, cell in enumerate(cells):
        ends = at + 1 == len(cells) or cells[at + 1] - cell > 2
        if ends or cell - cells[start] + 1 >= _LONGEST:
            yield cells[start], cell
            start = at + 1


def _stands_out(
    middle: NDArray[np.int16], before: NDArray[np.int16], after: NDArray[np.int16]
) -> NDArray[np.bool_]:
    one, other = middle - before, middle - after
    bright: NDArray[np.bool_] = np.minimum(one, other) >= _RIDGE
    dark: NDArray[np.bool_] = np.maximum(one, other) <= -_RIDGE
    return bright | dark


def _around(mask: NDArray[np.bool_], *, margin: int) -> Region | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return Region(
        left=max(0, int(columns[0]) - margin),
        top=max(0, int(rows[0]) - margin),
        right=min(width, int(columns[-1]) + 1 + margin),
        bottom=min(height, int(rows[-1]) + 1 + margin),
    )
