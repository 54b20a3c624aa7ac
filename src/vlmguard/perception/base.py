"""The seam to a detector: something that looks at pixels and reports a part of the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image as PILImage

from vlmguard.registry import Registry
from vlmguard.types import ObjectLabel, TextBox

DEFAULT_DETECTORS = ("ocr", "objects", "nudity")

DETECTORS = Registry(
    "detector",
    {
        "ocr": "vlmguard.perception.ocr:OCR",
        "objects": "vlmguard.perception.objects:Objects",
        "nudity": "vlmguard.perception.nudity:Nudity",
    },
    group="vlmguard.detectors",
)
"""Name → a callable without arguments that loads the detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one detector found over all frames of a picture; the rest stays empty.

    Attributes:
        text: lines in reading order.
        objects: likeliest first.
        nudity: 0..1, the highest of all frames; ``None`` when it was not looked for.
    """

    text: tuple[TextBox, ...] = ()
    objects: tuple[ObjectLabel, ...] = ()
    nudity: float | None = None


class Detector(Protocol):
    """Looks at the frames of one picture. Called from several threads at once."""

    @property
    def name(self) -> str:
        """Short and unique, e.g. ``"ocr"``."""
        ...

    @property
    def version(self) -> str:
        """Of model and settings together; part of the cache key."""
        ...

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        """Inspect all frames (RGB, at least one). Any exception is reported as a failure."""
        ...
