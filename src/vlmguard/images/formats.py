"""Which kind of file some bytes are, told from the bytes alone.

Only formats whose first bytes are unmistakable are opened, each by its one decoder. Formats that
start other programs (EPS), that hold several pictures of which a viewer shows one (ICO), or that
no vision-language model takes are named and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)
from PIL.ImageFile import ImageFile

from vlmguard.errors import InputError

_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\3\4", "ZIP"),
    (b"\x1a\x45\xdf\xa3", "Matroska video"),
    (b"version https://git-lfs", "Git LFS pointer"),
)

_MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "GIF": "image/gif",
    "WebP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIC": "image/heic",
}

_FIXES = {
    "SVG": "it is a drawing, not pixels; convert it to PNG first",
    "PDF": "render the page to PNG first",
    "HTML": "the address or file is a web page; give the picture itself",
    "Git LFS pointer": "it stands for a file that is not here; run: git lfs pull",
    "gzip": "it is an archive; unpack it first",
    "ZIP": "it is an archive; unpack it first",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format that can be opened.

    Attributes:
        name: for people, e.g. ``"JPEG"``.
        media_type: e.g. ``"image/jpeg"``.
    """

    name: str
    media_type: str


def sniff(data: bytes, source: str) -> Format:
    """Tell the format from the first bytes; file names and declared types are never trusted.

    Raises:
        InputError: empty, unknown, or a known format that is not supported, with the fix.
    """
    if not data:
        raise InputError(f"{source}: the file is empty")
    name = name_of(data)
    if name is None:
        raise InputError(
            f"{source}: not an image (its first bytes are {data[:8]!r}); "
            "PNG, JPEG, WebP, GIF, AVIF, BMP and TIFF are read"
        )
    media_type = _MEDIA_TYPES.get(name)
    if media_type is None:
        fix = _FIXES.get(name, "convert it to PNG or JPEG first")
        raise InputError(f"{source}: {name} is not supported: {fix}")
    return Format(name=name, media_type=media_type)


def opener(kind: Format, source: str) -> Callable[[bytes], ImageFile]:
    """The decoder of one format: reads the header only, checks no size, emits no warning.

    ``PIL.Image.open`` is avoided on purpose: it would try other decoders than the sniffed one, and
    warn or raise by its process-wide ``MAX_IMAGE_PIXELS`` instead of the caller's limits.

    Raises:
        InputError: this installation cannot decode the format.
    """
    if kind.name == "HEIC":
        return _heif_opener(source)
    if kind.name in {"WebP", "AVIF"} and not features.check(kind.name.lower()):
        raise InputError(
            f"{source}: this Pillow was built without {kind.name}; "
            "install the official wheel (pip install --force-reinstall pillow) or convert to PNG"
        )
    open_file = _OPENERS[kind.name]
    return lambda data: open_file(BytesIO(data))


_OPENERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # also opens MPO, several JPEGs in one file
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def _heif_opener(source: str) -> Callable[[bytes], ImageFile]:
    if find_spec("pillow_heif") is None:
        raise InputError(
            f"{source}: HEIC needs a decoder that is not installed: "
            "pip install pillow-heif, or convert it to JPEG or PNG first"
        )
    pillow_heif = import_module("pillow_heif")

    def open_heif(data: bytes) -> ImageFile:
        image: ImageFile = pillow_heif.HeifImageFile(BytesIO(data))
        return image

    return open_heif


def name_of(data: bytes) -> str | None:
    """The format's name, supported or not; ``None`` for unknown bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return _iso_name(data)
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    text = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--")) and b"<svg" in text):
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    return None


def _iso_name(data: bytes) -> str:
    """AVIF, HEIC and video share a container; its list of brands tells which it is."""
    size = int.from_bytes(data[:4], "big")
    listed = data[8 : min(size, 512)]
    brands = {listed[at : at + 4] for at in range(0, len(listed), 4)}
    if brands.intersection(_AVIF_BRANDS):
        return "AVIF"
    if brands.intersection(_HEIF_BRANDS):
        return "HEIC"
    return "MP4 video"
