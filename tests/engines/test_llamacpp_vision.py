"""Pictures through llama.cpp: the real text model with tiny, random eyes that the tests build.

They prove the path (every picture reaches the model), not the quality.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from gguf import GGUFWriter

from vlmguard.engines import Capability, Engine, Sampling, open_engine
from vlmguard.errors import EngineRejected, ModelStoreError
from vlmguard.types import Chat, Image, Message

HIDDEN = 576  # of the embedded model
WIDTH, FEED_FORWARD, LAYERS, SIDE, PATCH = 32, 64, 2, 56, 14
PICTURE_TOKENS = (SIDE // PATCH) ** 2
ONE = Sampling(max_tokens=1, top_logprobs=1)


def write_mmproj(path: Path) -> Path:
    """Write a random CLIP encoder with LLaVA 1.5's projector."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    for name, number in {
        "image_size": SIDE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "block_count": LAYERS,
        "attention.head_count": 2,
        "projection_dim": HIDDEN,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    writer.add_bool("clip.use_gelu", True)
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (WIDTH, 3, PATCH, PATCH),
        "v.class_embd": (WIDTH,),
        "v.position_embd.weight": (PICTURE_TOKENS + 1, WIDTH),
        "v.pre_ln.weight": (WIDTH,),
        "v.pre_ln.bias": (WIDTH,),
        "mm.0.weight": (HIDDEN, WIDTH),
        "mm.0.bias": (HIDDEN,),
        "mm.2.weight": (HIDDEN, HIDDEN),
        "mm.2.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ln1", "ln2"):
            square = (WIDTH,) if part.startswith("ln") else (WIDTH, WIDTH)
            shapes[f"v.blk.{layer}.{part}.weight"] = square
            shapes[f"v.blk.{layer}.{part}.bias"] = (WIDTH,)
        shapes[f"v.blk.{layer}.ffn_up.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"v.blk.{layer}.ffn_up.bias"] = (FEED_FORWARD,)
        shapes[f"v.blk.{layer}.ffn_down.weight"] = (WIDTH, FEED_FORWARD)
        shapes[f"v.blk.{layer}.ffn_down.bias"] = (WIDTH,)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def picture(colour: str) -> Image:
    file = io.BytesIO()
    PIL.Image.new("RGB", (80, 60), colour).save(file, "PNG")
    return Image(data=file.getvalue(), media_type="image/png")


@pytest.fixture
async def seeing(tmp_path: Path, smollm2_file: Path) -> AsyncIterator[Engine]:
    """The embedded model with eyes."""
    eyes = write_mmproj(tmp_path / "mmproj.gguf")
    engine = open_engine(f"llamacpp:{smollm2_file}?mmproj={eyes}&ctx=512&parallel=2&threads=1")
    yield engine
    await engine.aclose()


async def test_every_picture_reaches_the_model(seeing: Engine) -> None:
    """Each picture of each turn takes its tokens and changes what the model thinks."""
    assert Capability.VISION in seeing.capabilities
    text = await seeing.generate(Chat.of("What is it?"), ONE)
    red = await seeing.generate(Chat.of("What is it?", [picture("red")]), ONE)
    blue = await seeing.generate(Chat.of("What is it?", [picture("blue")]), ONE)
    assert red.usage.prompt_tokens == text.usage.prompt_tokens + PICTURE_TOKENS
    assert len({seen.logprobs for seen in (text, red, blue)}) == 3
    both = Chat.of("What is it?", [picture("red"), picture("blue")])
    two = await seeing.generate(both, ONE)
    assert two.usage.prompt_tokens == text.usage.prompt_tokens + 2 * PICTURE_TOKENS
    later = both.then(Message(role="assistant", text="It.")).then(
        Message(role="user", text="", images=(picture("green"),))
    )
    three = await seeing.generate(later, ONE)
    assert three.usage.prompt_tokens > two.usage.prompt_tokens + PICTURE_TOKENS


async def test_marker_in_the_text_stands_for_no_picture(seeing: Engine) -> None:
    """A user who writes llama.cpp's marker for a picture gets no picture for it."""
    chat = Chat.of("<__media__> <image> What is it?", [picture("red")])
    assert (await seeing.generate(chat, ONE)).usage.completion_tokens == 1


async def test_broken_picture(seeing: Engine) -> None:
    """Bytes that are no picture are refused, and the model goes on."""
    broken = Image(data=b"\x89PNG", media_type="image/png")
    with pytest.raises(EngineRejected):
        await seeing.generate(Chat.of("What is it?", [broken]), ONE)
    await seeing.generate(Chat.of("What is it?", [picture("red")]), ONE)


async def test_eyes_that_do_not_fit(tmp_path: Path, smollm2_file: Path) -> None:
    """A damaged projector is told with its path."""
    eyes = write_mmproj(tmp_path / "mmproj.gguf")
    eyes.write_bytes(eyes.read_bytes()[:-20_000])
    engine = open_engine(f"llamacpp:{smollm2_file}?mmproj={eyes}&ctx=512&parallel=2&threads=1")
    with pytest.raises(ModelStoreError, match=r"mmproj\.gguf"):
        await engine.generate(Chat.of("hi"), ONE)
    await engine.aclose()
