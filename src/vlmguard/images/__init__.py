"""Pictures as bytes and as pixels: loading, checking, decoding.

`load_image` turns what a user names into a checked `vlmguard.types.Image`; `decode` turns that into
every distinct view of its pixels; `vlmguard.images.fetch` gets remote ones safely.
"""

from __future__ import annotations

from vlmguard.images.decode import DEFAULT_LIMITS, DecodedImage, ImageLimits, decode
from vlmguard.images.load import load_image, parse_data_url
from vlmguard.images.several import load_images

__all__ = [
    "DEFAULT_LIMITS",
    "DecodedImage",
    "ImageLimits",
    "decode",
    "load_image",
    "load_images",
    "parse_data_url",
]
