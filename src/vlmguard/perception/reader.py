"""RapidOCR, told at which size to look: from pixels to lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from rapidocr import RapidOCR
from rapidocr.main import RapidOCRError

from vlmguard.perception.enhance import Pixels
from vlmguard.perception.lines import Box, Line, Turn, covered

_BLOCK = 32  # the detection network wants sides that are multiples of it
_MARGIN = 16  # pixels around the picture, so that text at its border is found


class Reader:
    """Finds lines of text and reads them. Safe to use from several threads.

    Args:
        threads: that one network may use.
    """

    def __init__(self, *, threads: int) -> None:
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",  # else it writes coloured lines to stderr
                "Global.use_vertical_padding": False,  # done here, for every picture
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "Det.limit_type": "max",  # the caller chooses the size, nothing is scaled again
                "Det.limit_side_len": 1_000_000,
            }
        )

    def read(self, pixels: Pixels, *, scale: float = 1.0, known: Sequence[Line] = ()) -> list[Line]:
        """The lines in ``pixels``, in their coordinates, in no particular order.

        Args:
            pixels: the picture.
            scale: size at which to look for lines. Those found are read at that size, or at the
                picture's own where that is larger.
            known: lines read before; what lies under them is not read again.
        """
        height, width = pixels.shape[:2]
        scaled = resized(pixels, scale)
        quads = self._find(scaled)
        ratio = np.array([scaled.shape[1] / width, scaled.shape[0] / height], np.float32)
        boxes = [_bounds(quad / ratio) for quad in quads]
        new = [at for at, box in enumerate(boxes) if not covered(box, known)]
        if not new:
            return []
        if scale < 1:
            scaled, quads = pixels, (quads / ratio).astype(np.float32)
        return self._recognize(scaled, [quads[at] for at in new], [boxes[at] for at in new])

    def _find(self, pixels: Pixels) -> NDArray[np.float32]:
        """Quadrilaterals around lines, shape (lines, 4, 2), in the coordinates of ``pixels``."""
        height, width = pixels.shape[:2]
        down = -(height + 2 * _MARGIN) % _BLOCK
        right = -(width + 2 * _MARGIN) % _BLOCK
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        padded = cv2.copyMakeBorder(
            pixels,
            _MARGIN,
            _MARGIN + down,
            _MARGIN,
            _MARGIN + right,
            cv2.BORDER_CONSTANT,
            value=[float(channel) for channel in np.median(edge, axis=0)],
        )
        try:
            _, result = self._engine.detect_and_crop(padded, {})
        except RapidOCRError:  # its way to say that there is none
            return np.empty((0, 4, 2), np.float32)
        found = np.asarray(result.boxes, np.float32) - _MARGIN
        return np.clip(found, 0, np.array([width, height], np.float32))

    def _recognize(
        self, pixels: Pixels, quads: list[NDArray[np.float32]], boxes: list[Box]
    ) -> list[Line]:
        crops = self._engine.crop_text_regions(pixels, np.stack(quads))
        upright, turned = self._engine.cls_and_rotate(crops)
        try:
            result = self._engine.recognize_txt(upright)
        except RapidOCRError:  # its way to say that there is none
            return []
        texts, scores, turns = result.txts or (), result.scores or (), turned.cls_res or []
        found = zip(texts, scores, boxes, quads, turns, strict=True)
        return [
            Line(text=text.strip(), confidence=float(score), box=box, turn=_turn(quad, label))
            for text, score, box, quad, (label, _) in found
            if text.strip()
        ]


def resized(pixels: Pixels, scale: float) -> Pixels:
    """The picture at another size; the same array at scale 1."""
    if scale == 1:
        return pixels
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cast("Pixels", cv2.resize(pixels, size, interpolation=method))


def _bounds(quad: NDArray[np.float32]) -> Box:
    (left, top), (right, bottom) = quad.min(axis=0), quad.max(axis=0)
    return (float(left), float(top), float(right), float(bottom))


def _turn(quad: NDArray[np.float32], label: str) -> Turn:
    """RapidOCR turns tall crops to the left by 90°, then those upside down by 180°."""
    width = max(np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[2] - quad[3]))
    height = max(np.linalg.norm(quad[0] - quad[3]), np.linalg.norm(quad[1] - quad[2]))
    if height >= 1.5 * width:
        return 270 if label == "180" else 90
    return 180 if label == "180" else 0
