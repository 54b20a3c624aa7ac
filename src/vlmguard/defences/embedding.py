"""Pictures and texts as vectors in one space, by an encoder that is named by a spec string.

::

    clip:openai/clip-vit-base-patch32    CLIP or SigLIP through transformers
    my_package.my_module:open_embedder   your own: a function (EngineSpec) -> Embedder
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vlmguard.defences.named import open_named
from vlmguard.registry import Registry
from vlmguard.types import Image

Vector = tuple[float, ...]


class Embedder(Protocol):
    """Turns pictures and texts into vectors of length 1, so that a product is a cosine."""

    async def embed_images(self, images: Sequence[Image]) -> list[Vector]:
        """One vector a picture.

        Raises:
            InputError: a picture cannot be decoded.
        """
        ...

    async def embed_texts(self, texts: Sequence[str]) -> list[Vector]:
        """One vector a text; long texts are cut to what the encoder takes."""
        ...


EMBEDDERS = Registry(
    "embedder", {"clip": "vlmguard.defences.clip:open_clip"}, group="vlmguard.embedders"
)
"""Scheme → a function ``(EngineSpec) -> Embedder``. Opening is cheap; models load on first use."""


def open_embedder(spec: str) -> Embedder:
    """Open the embedder that a spec string names.

    Raises:
        ConfigError: malformed spec or unknown option.
        UnknownName: unknown scheme; lists those there are.
        MissingExtra: its dependencies are not installed.
    """
    embedder: Embedder = open_named(EMBEDDERS, spec, "embed_images", "embed_texts")
    return embedder


def cosine(one: Vector, other: Vector) -> float:
    """The cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))
