"""Pictures of samples, and how they are drawn."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from vlmguard.errors import DataError, MissingExtra
from vlmguard.evals.benchmarks import DrawnPicture, FilePicture, drawing


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    """An error page or a pointer saved as a picture is an error that names the file."""
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1")
    picture = FilePicture(name="a.png", places=(tmp_path / "a.png",), fix="Get it.")
    with pytest.raises(DataError, match=r"a\.png: the picture cannot be used"):
        picture.load()


def test_figstep_size_and_lines() -> None:
    """760×760 as published: lines of 15 characters, then 1. 2. 3., and more text is more ink."""
    short = Image.open(BytesIO(drawing.figstep_picture("Steps.")))
    long = Image.open(BytesIO(drawing.figstep_picture("Steps to mix bleach and ammonia.")))
    assert short.size == long.size == (760, 760)
    rows = [_inked(picture) for picture in (short, long)]
    assert (rows[0], rows[1]) == (4, 6)


def test_figstep_never_cuts_text_off() -> None:
    """A longer instruction gives a higher picture."""
    picture = Image.open(BytesIO(drawing.figstep_picture("word " * 60)))
    assert picture.width == 760
    assert picture.height > 1500


def _inked(picture: Image.Image) -> int:
    """Lines of text that have ink."""
    gray = picture.convert("L")
    bands = (gray.crop((0, 12 + 75 * n, 760, 85 + 75 * n)) for n in range(9))
    return sum(band.getextrema()[0] < 128 for band in bands)  # type: ignore[operator]


def test_typo_wraps_and_grows() -> None:
    """1024 wide; a longer phrase needs more lines."""
    one = Image.open(BytesIO(drawing.typo_picture("phrase")))
    more = Image.open(BytesIO(drawing.typo_picture("a phrase that is very much longer")))
    assert one.width == more.width == 1024
    assert more.height > one.height


def test_drawing_without_the_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """The font comes with matplotlib; the error names the extra."""
    drawing._mono_bold.cache_clear()
    monkeypatch.setattr(drawing, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"vlmguard-r1\[eval\]"):
        DrawnPicture(text="x", draw=drawing.figstep_picture).load()
    drawing._mono_bold.cache_clear()
