"""What a picture shows: ImageNet's 1,000 classes by EfficientNet-Lite0, with probabilities.

The network and its licence notice lie in ``data/``; ``scripts/build_objects_onnx.py`` builds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from PIL import Image as PILImage

from vlmguard.errors import MissingExtra
from vlmguard.perception.base import Findings
from vlmguard.types import ObjectLabel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIDE = 224  # pixels; the network's input is float32 (batch, 3, 224, 224), RGB, (x - 127) / 128
_CROP = 224 / (224 + 32)  # of the shorter side, as the network was evaluated by its authors
_LONG = 1.5  # from this aspect ratio on, the ends of the picture are looked at too


class Objects:
    """Guesses what a picture shows.

    A guess is reported with its probability, and only when that is at least ``threshold``.

    Args:
        threshold: probability 0..1.
        most: report at most so many labels.

    Raises:
        MissingExtra: numpy or onnxruntime is not installed.
    """

    name = "objects"
    version = "efficientnet-lite0-1"

    def __init__(self, *, threshold: float = 0.1, most: int = 5) -> None:
        try:
            import numpy  # noqa: ICN001, F401, PLC0415  (optional dependency)
            import onnxruntime  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtra("recognizing objects", "local") from error
        data = resources.files("vlmguard.perception") / "data"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the other core reads text meanwhile
        self._session = onnxruntime.InferenceSession(
            (data / "efficientnet_lite0.onnx").read_bytes(),
            options,
            providers=["CPUExecutionProvider"],
        )
        self._labels = (data / "imagenet_labels.txt").read_text("utf-8").splitlines()
        self._threshold = threshold
        self._most = most

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        """The likeliest labels over all frames, each with its highest probability."""
        best: dict[int, float] = {}
        for frame in frames:
            for probabilities in self._probabilities(frame):
                for at in (probabilities >= self._threshold).nonzero()[0]:
                    best[int(at)] = max(best.get(int(at), 0.0), float(probabilities[at]))
        likeliest = sorted(best.items(), key=lambda item: -item[1])[: self._most]
        return Findings(
            objects=tuple(
                ObjectLabel(label=self._labels[at], probability=probability)
                for at, probability in likeliest
            )
        )

    def _probabilities(self, frame: PILImage.Image) -> NDArray[np.float32]:
        """Shape (crops, 1000)."""
        import numpy as np  # noqa: PLC0415

        pixels = np.stack([np.asarray(crop, np.float32) for crop in _crops(frame)])
        images = ((pixels - 127) / 128).transpose(0, 3, 1, 2)
        (probabilities,) = self._session.run(None, {"images": np.ascontiguousarray(images)})
        found: NDArray[np.float32] = probabilities
        return found


def _crops(frame: PILImage.Image) -> Iterator[PILImage.Image]:
    """The square in the middle, and of long pictures those at the ends."""
    width, height = frame.size
    side = max(1, round(min(width, height) * _CROP))
    places = [0.5]
    if max(width, height) >= _LONG * min(width, height):
        places += [0.0, 1.0]
    for place in places:
        left = (width - side) * (place if width >= height else 0.5)
        top = (height - side) * (place if height >= width else 0.5)
        box = (left, top, left + side, top + side)
        yield frame.resize((_SIDE, _SIDE), PILImage.Resampling.BICUBIC, box=box, reducing_gap=3.0)
