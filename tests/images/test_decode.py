"""Decoding: every view of every frame, as a target may see it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from PIL import Image as PILImage

from tests.drawing import encode, shapes, transparent_text, typed_text
from vlmguard.errors import InputError
from vlmguard.images import DecodedImage, ImageLimits, decode, load_image
from vlmguard.images.decode import _Cache

LIMITS = ImageLimits()


def decoded(data: bytes, limits: ImageLimits = LIMITS) -> DecodedImage:
    """Load and decode."""
    return decode(load_image(data, limits=limits), limits)


def frames_of(count: int, *, size: tuple[int, int] = (32, 24)) -> list[PILImage.Image]:
    """Frames of different colours."""
    return [PILImage.new("RGB", size, (step * 11 % 256, 20, 30)) for step in range(count)]


def dark(frame: PILImage.Image) -> int:
    """How many pixels are dark."""
    return sum(frame.convert("L").histogram()[:100])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"])
def test_formats(kind: str) -> None:
    """Each supported format gives one RGB frame of its size."""
    found = decoded(encode(shapes(size=(64, 48)), kind))
    assert (found.width, found.height) == (64, 48)
    assert [frame.mode for frame in found.frames] == ["RGB"]
    assert (found.frames_total, found.frames_skipped) == (1, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_look_alike(mode: str) -> None:
    """A picture of text stays a picture of text in every pixel mode."""
    kind = "PNG" if mode in {"1", "L", "P", "RGB"} else "JPEG"
    (frame,) = decoded(encode(typed_text().convert(mode), kind)).frames
    assert frame.getpixel((2, 2)) == pytest.approx((255, 255, 255), abs=3)
    assert dark(frame) == pytest.approx(dark(typed_text()), rel=0.1)


def test_one_pixel() -> None:
    """The smallest picture there is."""
    assert decoded(encode(PILImage.new("RGB", (1, 1), "red"))).frames[0].getpixel((0, 0)) == (
        255,
        0,
        0,
    )


def test_sixteen_bits_are_scaled_and_clipped() -> None:
    """Programs scale 16 bits or clip them; text may hide in either, so both are frames."""
    rows = struct.pack("<64H", *[60_000] * 32, *[100] * 32) * 48
    deep = PILImage.frombytes("I;16", (64, 48), rows)
    scaled, clipped = decoded(encode(deep)).frames
    assert scaled.getpixel((0, 0)) == (233, 233, 233)
    assert scaled.getpixel((63, 0)) == (0, 0, 0)
    assert clipped.getpixel((0, 0)) == (255, 255, 255)
    assert clipped.getpixel((63, 0)) == (100, 100, 100)


def test_white_text_before_transparency_is_kept() -> None:
    """White letters before nothing vanish on white, so the picture on black is a frame too."""
    frames = decoded(encode(transparent_text(ink="white"))).frames
    assert dark(frames[0]) == 0
    assert any(0 < dark(frame) < frame.width * frame.height for frame in frames[1:])


def test_text_in_fully_transparent_pixels_is_kept() -> None:
    """Targets that drop the alpha channel see what lies under it."""
    hidden = typed_text().convert("RGBA")
    hidden.putalpha(0)
    frames = decoded(encode(hidden)).frames
    assert dark(frames[-1]) == dark(typed_text())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_trivial_alpha_is_one_frame(mode: str) -> None:
    """An alpha channel that is opaque everywhere costs nothing."""
    image = shapes().convert("RGBA").convert("LA" if mode != "RGBA" else "RGBA")
    data = encode(image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    assert len(decoded(data).frames) == 1


def test_palette_with_transparency() -> None:
    """A palette whose entries are partly transparent is composited, not shown as stray colours."""
    image = PILImage.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (8, 0, 16, 16))
    found = decoded(encode(image, transparency=b"\x00\xff"))
    assert found.frames[0].getpixel((0, 0)) == (255, 255, 255)
    assert found.frames[0].getpixel((15, 0)) == (255, 0, 0)
    assert found.frames[1].getpixel((0, 0)) == (0, 0, 0)


def test_colour_key_transparency() -> None:
    """A PNG without alpha channel may name one colour as transparent."""
    image = PILImage.new("RGB", (16, 16), (10, 20, 30))
    found = decoded(encode(image, transparency=(10, 20, 30)))
    assert [frame.getpixel((0, 0)) for frame in found.frames] == [
        (255, 255, 255),
        (0, 0, 0),
        (10, 20, 30),
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    """The frame is turned as viewers turn it, and the size is the size as shown."""
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    found = decoded(encode(shapes(size=(64, 48)), "JPEG", exif=exif))
    assert (found.width, found.height) == ((64, 48) if orientation < 5 else (48, 64))
    assert found.frames[0].size == (found.width, found.height)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's own
def test_damaged_exif_is_ignored() -> None:
    """A picture whose EXIF is garbage is shown unrotated, as viewers do."""
    data = encode(shapes(size=(64, 48)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert decoded(data).width == 64


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"])
def test_animations(kind: str) -> None:
    """All frames of an animation or a many-paged file are there."""
    count = 2 if kind == "MPO" else 5  # Pillow writes a wrong index for more
    first, *rest = frames_of(count)
    data = encode(first, kind, save_all=True, append_images=rest)
    found = decoded(data)
    assert len(found.frames) == count
    assert (found.frames_total, found.frames_skipped) == (count, 0)


def test_a_jpeg_whose_second_picture_is_cut_off() -> None:
    """Editors cut off a phone's second picture but keep its index; the photo itself is fine."""
    first, second = frames_of(2)
    whole = encode(first, "MPO", save_all=True, append_images=[second])
    found = decoded(whole[: whole.index(b"\xff\xd9") + 2])
    assert (len(found.frames), found.frames_total, found.frames_skipped) == (1, 2, 1)


def test_repeated_frames_are_inspected_once() -> None:
    """Only distinct frames count, however often they come back."""
    first, second = frames_of(2)
    pages = [second, first, second, first]
    found = decoded(encode(first, "TIFF", save_all=True, append_images=pages))
    assert (len(found.frames), found.frames_total, found.frames_skipped) == (2, 5, 0)


def test_long_animations_are_sampled_evenly() -> None:
    """Over the cap the choice is spread from the first frame to the last, the rest counted."""
    first, *rest = frames_of(20)
    data = encode(first, "GIF", save_all=True, append_images=rest)
    found = decoded(data, ImageLimits(max_frames=4))
    assert (found.frames_total, found.frames_skipped) == (20, 16)
    reds = [frame.getpixel((0, 0))[0] for frame in found.frames]  # type: ignore[index]
    assert reds == pytest.approx([0, 66, 143, 209], abs=3)


def test_one_frame_cap() -> None:
    """A cap of one keeps the first frame."""
    first, *rest = frames_of(3)
    data = encode(first, "GIF", save_all=True, append_images=rest)
    found = decoded(data, ImageLimits(max_frames=1))
    assert (len(found.frames), found.frames_skipped) == (1, 2)


def test_an_animation_of_too_many_pixels_is_refused() -> None:
    """Frames together have a cap of their own, so that a long animation cannot stall the guard."""
    first, *rest = frames_of(20)
    data = encode(first, "GIF", save_all=True, append_images=rest)
    with pytest.raises(InputError, match="20 frames of 32x24"):
        decoded(data, ImageLimits(max_total_pixels=10_000))


def test_a_page_that_is_larger_than_the_first() -> None:
    """The pixel caps hold for every page, not only for the first."""
    small, large = PILImage.new("L", (8, 8)), PILImage.new("L", (400, 400))
    data = encode(small, "TIFF", save_all=True, append_images=[large])
    with pytest.raises(InputError, match="400x400"):
        decoded(data, ImageLimits(max_pixels=10_000))
    with pytest.raises(InputError, match="together are over"):
        decoded(data, ImageLimits(max_total_pixels=10_000))


def test_large_pictures_keep_fewer_views() -> None:
    """Memory is bounded: large frames are kept in smaller number, the rest counted as skipped."""
    first, *rest = frames_of(8, size=(100, 100))
    data = encode(first, "GIF", save_all=True, append_images=rest)
    found = decoded(data, ImageLimits(max_pixels=10_000))
    assert (len(found.frames), found.frames_skipped) == (3, 5)


def test_errors_name_the_source(tmp_path: Path) -> None:
    """A damaged file is named by its path."""
    path = tmp_path / "broken.jpg"
    path.write_bytes(encode(shapes(), "JPEG")[:900])
    with pytest.raises(InputError, match=r"broken\.jpg: damaged or truncated JPEG"):
        load_image(path)


def test_a_flipped_bit_in_a_png() -> None:
    """A PNG whose checksum is wrong is refused."""
    data = bytearray(encode(shapes()))
    data[60] ^= 1
    with pytest.raises(InputError, match="PNG"):
        load_image(bytes(data))


def test_a_lying_gif_size() -> None:
    """A GIF that claims 65,535 x 65,535 is refused from its header."""
    data = bytearray(encode(shapes(), "GIF"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(InputError, match="65535x65535"):
        load_image(bytes(data))


def test_one_image_is_decoded_once() -> None:
    """Equal bytes and limits give the same object, whatever their source is called."""
    data = encode(shapes(size=(50, 40)))
    assert decoded(data) is decoded(data)
    assert decoded(data) is not decoded(data, ImageLimits(max_frames=2))


def test_the_cache_is_bounded() -> None:
    """The oldest decoded pictures leave when the pixels add up; a giant one is never kept."""

    def entry(side: int) -> DecodedImage:
        return DecodedImage(width=side, height=side, frames=(PILImage.new("RGB", (side, side)),))

    cache = _Cache(max_pixels=250)
    for name in "abc":
        cache.put((name, LIMITS), entry(10))
    assert cache.get(("a", LIMITS)) is None
    assert cache.get(("c", LIMITS)) is not None
    cache.put(("d", LIMITS), entry(100))
    assert cache.get(("d", LIMITS)) is None
