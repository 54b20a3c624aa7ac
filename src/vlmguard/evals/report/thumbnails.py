"""Small copies of pictures, so that a page can carry them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageOps

from vlmguard.errors import DataError, VLMGuardError
from vlmguard.evals.described import MEDIA_TYPE
from vlmguard.evals.types import Picture
from vlmguard.types import Image

SIDE = 384
"""Pixels of the longer side: typed attacks stay readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture scaled down, or why there is none. A `vlmguard.evals.types.Picture` itself.

    Attributes:
        image: WebP; ``None`` where ``missing`` says why.
        missing: why there is no picture.
    """

    image: Image | None = None
    missing: str = ""

    def load(self) -> Image:
        """The small picture.

        Raises:
            DataError: there is none.
        """
        if self.image is None:
            raise DataError(self.missing, path=Path("a picture of saved results"))
        return self.image


def thumbnail(picture: Picture) -> Thumbnail:
    """A small copy. A picture that cannot be shown is said, never an error."""
    if isinstance(picture, Thumbnail):
        return picture
    try:
        return small_copy(picture.load())
    except (VLMGuardError, OSError) as error:
        return Thumbnail(missing=f"the picture cannot be shown: {error}")


def small_copy(image: Image) -> Thumbnail:
    """The same of a picture that is read already."""
    if image.media_type == MEDIA_TYPE:
        return Thumbnail(missing="a description stands in place of this picture")
    try:
        return Thumbnail(image=_scaled(image))
    except (OSError, ValueError, Pillow.DecompressionBombError) as error:
        return Thumbnail(missing=f"the picture cannot be shown: {error}")


def _scaled(image: Image) -> Image:
    with Pillow.open(io.BytesIO(image.data)) as opened:
        opened.draft("RGB", (SIDE, SIDE))  # JPEGs decode at a fraction of their size
        small = opened if opened.mode in {"RGB", "L", "RGBA"} else opened.convert("RGBA")
        small.thumbnail((SIDE, SIDE))  # before all else: the rest then costs little
        ImageOps.exif_transpose(small, in_place=True)
    if small.mode == "RGBA":
        paper = Pillow.new("RGB", small.size, "white")
        paper.paste(small, mask=small.getchannel("A"))
        small = paper
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=72, method=2)  # a tenth larger than the best, half the time
    return Image(data=buffer.getvalue(), media_type="image/webp", source=image.source)
