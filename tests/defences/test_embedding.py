"""Embedders: CLIP through transformers, and one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.defences.common import Directions, picture
from vlmguard.defences.embedding import cosine, open_embedder
from vlmguard.errors import ConfigError, UnknownName


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """The spec of a tiny random CLIP."""
    pytest.importorskip("torch")
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from tests import tiny_models

    tokenizer = tiny_models._byte_level_tokenizer(eos="</s>", pad="<pad>", control=["<s>"])
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config={
            **small,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    tiny_models._save_model(CLIPModel, config, tmp_path)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return f"clip:{tmp_path}"


async def test_clip_gives_vectors_of_length_one(clip: str) -> None:
    """Of pictures and of texts, also of long ones; equal things are alike."""
    embedder = open_embedder(clip)
    images = await embedder.embed_images([picture("a"), picture("b"), picture("a")])
    texts = await embedder.embed_texts(["a", "b" * 500, "a"])
    assert {len(vector) for vector in images + texts} == {16}
    for vector in images + texts:
        assert cosine(vector, vector) == pytest.approx(1, abs=1e-5)
    for one, other, again in (images, texts):
        assert cosine(one, again) == pytest.approx(1, abs=1e-5)
        assert cosine(one, other) < 1 - 1e-5
    assert await embedder.embed_images([]) == []
    assert await embedder.embed_texts([]) == []


async def test_a_model_that_is_no_clip_is_an_error(tmp_path: Path) -> None:
    """It must encode both."""
    pytest.importorskip("torch")
    from tests.tiny_models import save_llava

    with pytest.raises(ConfigError, match=r"cannot load|does not encode both"):
        await open_embedder(f"clip:{save_llava(tmp_path)}").embed_texts(["a"])


def test_specs_name_embedders() -> None:
    """One's own by its import path; mistakes are told with what to write."""
    assert isinstance(open_embedder("tests.defences.common:open_directions"), Directions)
    with pytest.raises(UnknownName, match="unknown embedder 'klip'; known: clip"):
        open_embedder("klip")
    with pytest.raises(ConfigError, match="has no embed_images, embed_texts"):
        open_embedder("tests.defences.common:open_nothing")
    with pytest.raises(ConfigError, match="name a model"):
        open_embedder("clip")
    with pytest.raises(ConfigError, match="unknown option 'x'"):
        open_embedder("tests.defences.common:open_directions?x=1")
