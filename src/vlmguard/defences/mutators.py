"""JailGuard's small changes to a request: its "policy" mix of mutators, repeatable by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from io import BytesIO

from PIL import Image as PILImage
from PIL import ImageFilter, ImageOps

from vlmguard.images import decode
from vlmguard.types import Image

_PUNCTUATION = ".,!?;:"
_FILLER = "[mask]"

Picture = PILImage.Image


def mutate_image(image: Image, seed: str) -> Image:
    """A rotated (34 %), blurred (45 %) or posterized (21 %) copy, as a PNG of the first frame.

    CPU-bound: in async code, call it in a thread.

    Args:
        image: the original.
        seed: the same one gives the same copy.

    Raises:
        InputError: the picture cannot be decoded.
    """
    draw = random.Random(f"{seed}\0{image.sha256}")  # noqa: S311  # no secret
    [mutate] = draw.choices((_rotate, _blur, _posterize), weights=(34, 45, 21))
    buffer = BytesIO()
    mutate(decode(image).frames[0], draw).save(buffer, "PNG", compress_level=1)
    return Image(data=buffer.getvalue(), media_type="image/png", source=image.source)


def mutate_text(text: str, seed: str) -> str:
    """A copy with punctuation or fillers between some words, or with some letters left out.

    Args:
        text: the original.
        seed: the same one gives the same copy.
    """
    draw = random.Random(f"{seed}\0{text}")  # noqa: S311  # no secret
    [mutate] = draw.choices((_punctuate, _fill, _drop), weights=(34, 33, 33))
    return mutate(text, draw)


def _rotate(picture: Picture, draw: random.Random) -> Picture:
    return picture.rotate(draw.uniform(0, draw.uniform(0.1, 180)))


def _blur(picture: Picture, draw: random.Random) -> Picture:
    # A kernel of k pixels is Pillow's radius of about k/4.
    return picture.filter(ImageFilter.GaussianBlur(draw.choice((1, 3, 5, 7)) / 4))


def _posterize(picture: Picture, draw: random.Random) -> Picture:
    return ImageOps.posterize(picture, draw.choice((1, 2)))


def _between(words: list[str], pieces: Callable[[], str], draw: random.Random) -> str:
    """The words with something put between about a sixth of them, and at least once."""
    places = draw.sample(range(len(words) + 1), max(1, len(words) // 6))
    for place in sorted(places, reverse=True):
        words.insert(place, pieces())
    return " ".join(words)


def _punctuate(text: str, draw: random.Random) -> str:
    return _between(text.split(" "), lambda: draw.choice(_PUNCTUATION), draw)


def _fill(text: str, draw: random.Random) -> str:
    return _between(text.split(" "), lambda: _FILLER, draw)


def _drop(text: str, draw: random.Random) -> str:
    if len(text) < 2:
        return text
    gone = set(draw.sample(range(len(text)), max(1, len(text) // 100)))
    return "".join(letter for place, letter in enumerate(text) if place not in gone)
