"""CLIP, SigLIP and their kin through transformers: ``clip:MODEL``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmguard.defences.embedding import Vector
from vlmguard.defences.one_thread import OneThread, local_or_hub
from vlmguard.engines import EngineSpec
from vlmguard.engines.transformers_weights import Weights, explained
from vlmguard.errors import ConfigError, MissingExtra
from vlmguard.images import decode
from vlmguard.models.store import is_offline
from vlmguard.types import Image


def open_clip(spec: EngineSpec) -> Clip:
    """Open ``clip:org/model`` or ``clip:/folder``. Cheap: loads nothing yet.

    Options: ``dtype``, ``device``, ``revision``.

    Raises:
        ConfigError: no model is named, or an option is wrong.
        MissingExtra: torch or transformers is not installed.
    """
    options = spec.take(dtype=str, device=str, revision=str)
    if not spec.value:
        raise ConfigError(f"{spec}: name a model: clip:openai/clip-vit-base-patch32 or a folder")
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtra("CLIP", "hf")
    return Clip(
        Weights(
            model=local_or_hub(spec.value),
            offline=is_offline(),
            **options,  # type: ignore[arg-type]
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    model: Any
    tokenizer: Any
    pictures: Any


class Clip:
    """An encoder of pictures and texts.

    Args:
        weights: what to load, on first use.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._thread = OneThread(self._load, name="clip")

    async def embed_images(self, images: Sequence[Image]) -> list[Vector]:
        """See `vlmguard.defences.embedding.Embedder`. Of an animation, the first frame."""
        return await self._thread.run(lambda loaded: _embed_images(loaded, images))

    async def embed_texts(self, texts: Sequence[str]) -> list[Vector]:
        """See `vlmguard.defences.embedding.Embedder`."""
        return await self._thread.run(lambda loaded: _embed_texts(loaded, texts))

    def _load(self) -> _Loaded:
        import torch  # noqa: PLC0415  # slow to import
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer  # noqa: PLC0415

        from vlmguard.engines.transformers_host import quiet_unless_terminal  # noqa: PLC0415

        weights = self._weights
        device = weights.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with explained(weights.model), quiet_unless_terminal():
            tokenizer = AutoTokenizer.from_pretrained(weights.model, **weights.origin())
            pictures = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                weights.model, **weights.origin()
            )
            model = AutoModel.from_pretrained(
                weights.model, dtype=weights.dtype, **weights.origin()
            )
            if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
                raise ConfigError(
                    f"{weights.model} is a {type(model).__name__}, which does not encode both "
                    "pictures and texts; name a CLIP or SigLIP"
                )
        return _Loaded(model=model.to(device).eval(), tokenizer=tokenizer, pictures=pictures)


def _embed_images(loaded: _Loaded, images: Sequence[Image]) -> list[Vector]:
    if not images:
        return []
    frames = [decode(image).frames[0] for image in images]
    inputs = loaded.pictures(images=frames, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(loaded.model.dtype)
    return _vectors(loaded.model.get_image_features, inputs.to(loaded.model.device))


def _embed_texts(loaded: _Loaded, texts: Sequence[str]) -> list[Vector]:
    if not texts:
        return []
    longest = loaded.model.config.text_config.max_position_embeddings
    inputs = loaded.tokenizer(
        list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest
    )
    return _vectors(loaded.model.get_text_features, inputs.to(loaded.model.device))


def _vectors(encode: Any, inputs: Any) -> list[Vector]:
    """Features of length 1."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        features = encode(**inputs)
    features = getattr(features, "pooler_output", features).float()
    unit = torch.nn.functional.normalize(features, dim=-1)
    return [tuple(row) for row in unit.tolist()]
