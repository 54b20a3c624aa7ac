"""Where the reader looks a second time."""

from __future__ import annotations

import pytest
from PIL import Image as PILImage

from tests.drawing import faint_text, shapes, typed_text, write

np = pytest.importorskip("numpy")
pytest.importorskip("cv2")

from vlmguard.perception import enhance  # noqa: E402
from vlmguard.perception.lines import Line  # noqa: E402


def test_content_leaves_out_an_even_border() -> None:
    """Even margins cannot hold text; an even picture has no content at all."""
    image = PILImage.new("RGB", (400, 300), "ivory")
    assert enhance.content(enhance.bgr(image)) is None
    image.paste("navy", (100, 120, 140, 150))
    found = enhance.content(enhance.bgr(image))
    assert found == enhance.Region(left=84, top=104, right=156, bottom=166)
    assert found.area == 72 * 62
    assert found.cut(enhance.bgr(image)).shape == (62, 72, 3)


def test_faint_contrast_becomes_strong() -> None:
    """One gray level on paper is stretched to more than fifty."""
    stretched = enhance.normalized(enhance.bgr(faint_text(ink=(254, 254, 254))))
    assert int(stretched.max()) - int(stretched.min()) > 50


def test_drawn_pictures_have_no_faint_parts() -> None:
    """Flat shapes need no second pass; and letters that were read are no reason for one."""
    pixels = enhance.bgr(shapes())
    found = enhance.faintness(pixels, enhance.covering(pixels, []))
    assert found.region is None
    assert found.plain > 0.9
    pixels = enhance.bgr(typed_text())
    whole = Line(text="x", confidence=1.0, box=(0, 0, 480, 320))
    assert enhance.faintness(pixels, enhance.covering(pixels, [whole])).region is None


def test_faint_letters_and_noise_are_faint() -> None:
    """The region surrounds faint letters; noise makes the whole picture faint and not plain."""
    pixels = enhance.bgr(faint_text())
    found = enhance.faintness(pixels, enhance.covering(pixels, []))
    assert found.region is not None
    assert found.region.area < 480 * 320
    pixels = enhance.bgr(PILImage.effect_noise((200, 100), 3).convert("RGB"))
    found = enhance.faintness(pixels, enhance.covering(pixels, []))
    assert found.region == enhance.Region(left=0, top=0, right=200, bottom=100)
    assert found.plain < 0.05


def test_contrast_of_a_line() -> None:
    """Measured in the channel where a line stands out most, also at the picture's border."""
    pixels = enhance.bgr(faint_text(ink=(255, 255, 225)))
    assert enhance.contrast(pixels, (20, 20, 200, 120)) == pytest.approx(30, abs=2)
    assert enhance.contrast(pixels, (470, 310, 480, 320)) == 0


def test_fine_regions_surround_small_letters() -> None:
    """Small letters are regions of their own, whole lines each; large letters are none."""
    image = PILImage.new("RGB", (3000, 2000), "white")
    write(image, "HEADLINE", at=(100, 50), font_size=200, wrap=20)
    write(image, "a small line of text, as notes have it", at=(1800, 1500), font_size=11, wrap=99)
    (found,) = enhance.fine_regions(enhance.bgr(image))
    assert found.left <= 1800
    assert found.right >= 2010
    assert found.top <= 1500
    assert found.bottom >= 1515
    assert found.area < 500 * 300


def test_fine_regions_cover_all_noise() -> None:
    """What is fine everywhere is covered everywhere, in pieces of bounded size."""
    noise = PILImage.effect_noise((3000, 700), 200).convert("RGB")
    regions = enhance.fine_regions(enhance.bgr(noise))
    seen = np.zeros((700, 3000), bool)
    for found in regions:
        seen[found.top : found.bottom, found.left : found.right] = True
        assert found.area < 3_000_000
    assert seen.all()
