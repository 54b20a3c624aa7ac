"""Loading: what is refused, with which words, and what is accepted."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image as PILImage

from tests.drawing import encode, shapes
from vlmguard.errors import InputError
from vlmguard.images import ImageLimits, load_image
from vlmguard.types import Image

PNG = encode(shapes(size=(64, 48)))
JPEG = encode(shapes(size=(64, 48)), "JPEG")


def data_url(data: bytes, head: str = "data:image/png;base64") -> str:
    """The bytes as a base64 data: URL."""
    return f"{head},{base64.b64encode(data).decode()}"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png_with_header(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be a picture of any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_path_is_loaded(tmp_path: Path) -> None:
    """A Path and its string give the same picture, named by its path."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (path, str(path)):
        image = load_image(source)
        assert image.data == PNG
        assert image.media_type == "image/png"
        assert image.source == str(path)


def test_bytes_are_loaded() -> None:
    """The bytes of a file are taken as they are."""
    assert load_image(JPEG).media_type == "image/jpeg"


def test_an_image_is_checked_again() -> None:
    """The media type that a caller claims is replaced by the one that the bytes show."""
    claimed = Image(data=JPEG, media_type="image/png", source="upload")
    assert load_image(claimed) == Image(data=JPEG, media_type="image/jpeg", source="upload")


def test_the_extension_is_not_trusted(tmp_path: Path) -> None:
    """A JPEG named .png is a JPEG."""
    path = tmp_path / "a.png"
    path.write_bytes(JPEG)
    assert load_image(path).media_type == "image/jpeg"


@pytest.mark.parametrize(
    "url",
    [
        data_url(PNG),
        "  \n" + data_url(PNG),
        data_url(PNG, "DATA:image/png;BASE64"),
        data_url(PNG, "data:;base64"),
        data_url(PNG, "data:text/html;charset=utf-8;base64"),
        "data:image/png;base64," + quote(base64.b64encode(PNG).decode()),
        "data:image/png;base64," + base64.encodebytes(PNG).decode(),
        "data:image/png," + quote(PNG),
    ],
    ids=["plain", "spaces", "case", "untyped", "lying", "percent", "wrapped", "no-base64"],
)
def test_data_urls(url: str) -> None:
    """Every legal way to write a data: URL gives the same bytes; its declared type is ignored."""
    image = load_image(url)
    assert image.data == PNG
    assert image.media_type == "image/png"
    assert image.source == "data: URL"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("data:image/png;base64,AAA", "base64 is wrong"),
        ("data:image/png;base64,!!!!", "base64 is wrong"),
        ("data:image/png;base64,é", "base64 is wrong"),
        ("data:image/png;base64", "no comma"),
        ("data:", "no comma"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png," + base64.b64encode(PNG).decode(), "not an image"),
        ("http://example.com/a.png", "--allow-remote"),
        ("  HTTPS://example.com/a.png", "--allow-remote"),
        ("file:///etc/passwd", "file: URLs are not read"),
        ("", "empty"),
        ("  ", "empty"),
        ("no\0such.png", "no such file|cannot be read"),
        ("x" * 5000, "no such file|cannot be read"),
        ("\udcff.png", "no such file|cannot be read"),
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"garbage" + PNG, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG.*convert it to PNG"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><svg/>", "SVG"),
        (b"<!DOCTYPE html><html>", "HTML.*web page"),
        (b"%PDF-1.7", "PDF.*render"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS.*convert"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "MP4 video"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF89a", "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (PNG[:-40], "truncated PNG"),
        (PNG[: len(PNG) // 2], "truncated PNG"),
        (JPEG[: len(JPEG) // 2], "truncated JPEG"),
        (5, "not int 5"),
        (None, "not NoneType"),
    ],
)
def test_what_is_refused(source: object, says: str) -> None:
    """Each kind of bad input has a one-line error that says what is wrong."""
    with pytest.raises(InputError, match=says) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory, an empty file and a pipe are told apart."""
    empty = tmp_path / "empty.png"
    empty.touch()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path, says in (
        (tmp_path / "none.png", "none.png: no such file"),
        (tmp_path, "is a directory"),
        (empty, "empty.png: the file is empty"),
        (pipe, "not a regular file"),
    ):
        with pytest.raises(InputError, match=says):
            load_image(path)


def test_heic_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a HEIC decoder the error says what to install."""
    monkeypatch.setattr("vlmguard.images.formats.find_spec", lambda name: None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    with pytest.raises(InputError, match="pip install pillow-heif"):
        load_image(heic)


def test_a_pillow_without_webp_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow was built without a format, the error says so."""
    monkeypatch.setattr("vlmguard.images.formats.features.check", lambda name: False)
    with pytest.raises(InputError, match="built without WebP"):
        load_image(encode(shapes(), "WEBP"))


def test_a_bomb_is_refused_before_decoding() -> None:
    """20,000 x 20,000 pixels in a few hundred bytes: the header alone is enough to refuse."""
    bomb = png_with_header(20_000, 20_000)
    assert len(bomb) < 200
    with pytest.raises(InputError, match=r"20000x20000 is 400,000,000 pixels.*50,000,000"):
        load_image(bomb)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP"])
def test_pillows_own_cap_does_not_interfere(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is the cap: Pillow's process-wide one neither warns nor raises (warnings fail here)."""
    data = encode(PILImage.new("RGB", (20, 20), "teal"), kind)
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 300)
    assert load_image(data).data == data
    with pytest.raises(InputError, match="20x20 is 400 pixels, over the limit of 399"):
        load_image(data, limits=ImageLimits(max_pixels=399))


def test_bytes_over_the_cap(tmp_path: Path) -> None:
    """The byte cap holds for files, bytes and data: URLs."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    limits = ImageLimits(max_bytes=100)
    for source in (path, PNG, data_url(PNG)):
        with pytest.raises(InputError, match="over the limit of 100"):
            load_image(source, limits=limits)


def test_a_png_with_a_huge_text_chunk() -> None:
    """Compressed text that unfolds to 50 MB is refused; plain text in the file is ignored."""
    body = PNG[33:]
    bomb = b"Comment\0\0" + zlib.compress(b"x" * 50_000_000)
    with pytest.raises(InputError, match="PNG"):
        load_image(PNG[:33] + png_chunk(b"zTXt", bomb) + body)
    plain = b"Comment\0" + b"x" * 3_000_000
    assert load_image(PNG[:33] + png_chunk(b"tEXt", plain) + body).media_type == "image/png"
