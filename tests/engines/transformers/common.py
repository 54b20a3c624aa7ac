"""What the tests of the transformers engine share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image as PILImage

from tests import tiny_models
from vlmguard.engines import Engine, Sampling, open_engine
from vlmguard.engines.transformers import TransformersEngine
from vlmguard.engines.transformers_generate import Job
from vlmguard.engines.transformers_host import LoadedModel
from vlmguard.engines.transformers_text import Detokenizer
from vlmguard.types import Chat, Delta, Image

FAMILIES = sorted(tiny_models.FAMILIES)
VLMS = sorted(tiny_models.VLMS)
SHORT = Sampling(max_tokens=8)
PROMPT = Chat.of("What is in the picture?")

Engines = Callable[[str], TransformersEngine]


def open_model(path: Path, **options: object) -> TransformersEngine:
    """The engine of a folder, by its spec string."""
    tail = "&".join(f"{key}={value}" for key, value in options.items())
    engine = open_engine(f"hf:{path}?{tail}" if tail else f"hf:{path}")
    assert isinstance(engine, TransformersEngine)
    return engine


def picture(color: str, size: tuple[int, int] = (60, 40), kind: str = "PNG") -> Image:
    """A picture of one colour."""
    buffer = BytesIO()
    PILImage.new("RGB", size, color).save(buffer, kind)
    return Image(data=buffer.getvalue(), media_type=f"image/{kind.lower()}")


RED, BLUE = picture("red"), picture("blue", (40, 90))


async def streamed(engine: Engine, chat: Chat, sampling: Sampling) -> list[Delta]:
    """Every piece of an answer."""
    return [delta async for delta in engine.stream(chat, sampling)]


async def loaded_model(engine: TransformersEngine) -> LoadedModel:
    """What the engine's thread works with, after the model is loaded."""
    await engine.generate(PROMPT, Sampling(max_tokens=1))
    assert engine._host is not None
    return await asyncio.wrap_future(engine._host.submit(lambda loaded: loaded))


def special_tokens(loaded: LoadedModel, chat: Chat) -> list[int]:
    """The special tokens of a chat's prompt, in order."""
    ids = loaded.format.encode(chat)["input_ids"][0].tolist()
    return [token for token in ids if token in set(loaded.tokenizer.all_special_ids)]


def as_text(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """Tokens as text, one by one: random bytes decoded at once would spoil each other."""

    def decode(some: Sequence[int]) -> str:
        return str(loaded.tokenizer.decode(some, skip_special_tokens=True))

    detokenizer = Detokenizer(decode)
    return "".join([detokenizer.push(token) for token in tokens]) + detokenizer.flush()


def job(chat: Chat, sampling: Sampling) -> Job:
    """A request as the host's thread gets it."""
    return Job(
        spec="hf:test",
        chat=chat,
        sampling=sampling,
        adapter=None,
        max_pixels=None,
        show=lambda _: None,
        cancelled=threading.Event(),
    )
