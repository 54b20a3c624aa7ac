"""The vLLM engine against a small stand-in with the signatures that vLLM documents.

vLLM needs a GPU; what runs here is how requests are built, gathered and told apart.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmguard.engines import Capability, Engine, Sampling, open_engine
from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineUnavailable,
    MissingExtra,
    UnsupportedCapability,
)
from vlmguard.types import Chat, Image, Message

FAKE = Path(__file__).with_name("vllm_fake")
PICTURE = Image(data=b"\x89PNG", media_type="image/png")
SCHEMA = {"type": "object", "properties": {"safe": {"type": "boolean"}}}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, importable as ``vllm``."""
    monkeypatch.syspath_prepend(str(FAKE))
    forget()
    yield importlib.import_module("vllm")
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


async def ask(engine: Engine, prompt: str, **how: Any) -> str:
    return (await engine.generate(Chat.of(prompt), Sampling(**how))).text


async def test_a_request(vllm: Any) -> None:
    """Messages and pictures in the OpenAI format, and every field of `Sampling`."""
    engine = open_engine("vllm:org/model?max_model_len=4096&dtype=bfloat16")
    sampling = Sampling(
        max_tokens=50,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=("\n\n",),
        top_logprobs=2,
        json_schema=SCHEMA,
    )
    answer = await engine.generate(Chat.of("What is it?", [PICTURE], system="Be brief."), sampling)
    [model] = vllm.LLM.made
    assert model.model == "org/model"
    assert model.arguments["max_model_len"] == 4096
    assert model.arguments["dtype"] == "bfloat16"
    [asked] = model.asked
    [conversation] = asked.messages
    assert conversation == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PICTURE.data_url()}},
                {"type": "text", "text": "What is it?"},
            ],
        },
    ]
    [params] = asked.sampling_params
    assert (params.max_tokens, params.temperature, params.top_p) == (50, 0.5, 0.9)
    assert (params.seed, params.stop, params.logprobs) == (3, ["\n\n"], 2)
    assert params.structured_outputs.json == SCHEMA
    assert asked.add_generation_prompt
    assert answer.text.startswith("Yes, go ahead")
    assert answer.finish_reason == "stop"
    assert answer.usage.cached_tokens == 3
    assert answer.usage.completion_tokens == len(answer.text.split())
    assert answer.logprobs is not None
    assert answer.logprobs[0].token == "Yes,"
    assert answer.logprobs[0].top == (("Yes,", -0.5), ("other0", -2.0))
    await engine.aclose()


async def test_plain(vllm: Any) -> None:
    """Without them, nothing is asked for; a cut answer says so."""
    engine = open_engine("vllm:org/model")
    answer = await engine.generate(Chat.of("Hello"), Sampling(max_tokens=2))
    assert answer.text == "Yes, go"
    assert answer.finish_reason == "length"
    assert answer.logprobs is None
    [params] = vllm.LLM.made[0].asked[0].sampling_params
    assert params.logprobs is None
    assert params.structured_outputs is None
    deltas = [delta async for delta in engine.stream(Chat.of("Hello"), Sampling())]
    assert [delta.finish_reason for delta in deltas] == ["stop"]
    await engine.aclose()


async def test_calls_are_gathered(vllm: Any) -> None:
    """Many calls make few batches, in one thread, and everyone gets their own answer."""
    engine = open_engine("vllm:org/model")
    await engine.load()
    prompts = [f"Number {n}" for n in range(40)]
    answers = await asyncio.gather(*(ask(engine, prompt) for prompt in prompts))
    assert len(set(answers)) == 40
    assert answers == [await ask(engine, prompt) for prompt in prompts]
    [model] = vllm.LLM.made
    gathered = model.asked[:-40]
    assert sum(len(asked.messages) for asked in gathered) == 40
    assert len(gathered) < 20
    assert len({asked.thread for asked in model.asked}) == 1
    await engine.aclose()


async def test_a_prefix_is_continued(vllm: Any) -> None:
    """A chat that ends with an assistant message goes into a batch of its kind."""
    engine = open_engine("vllm:org/model")
    begun = Chat.of("Hello").then(Message(role="assistant", text="Well,"))
    await asyncio.gather(engine.generate(begun, Sampling()), ask(engine, "Hello"))
    kinds = {
        (asked.continue_final_message, asked.add_generation_prompt, len(asked.messages))
        for asked in vllm.LLM.made[0].asked
    }
    assert kinds == {(True, False, 1), (False, True, 1)}
    await engine.aclose()


async def test_one_bad_request(vllm: Any) -> None:
    """It is refused, and those that were in its batch are answered."""
    engine = open_engine("vllm:org/model")
    await engine.load()
    answers = await asyncio.gather(
        *(ask(engine, "x" * 30_000 if n == 3 else f"Number {n}") for n in range(8)),
        ask(engine, "Hello", top_p=0.0),
        return_exceptions=True,
    )
    assert isinstance(answers[3], EngineRejected)
    assert "longer than the maximum model length" in str(answers[3])
    assert isinstance(answers[8], EngineRejected)
    assert sum(isinstance(answer, str) for answer in answers) == 7
    await engine.aclose()


async def test_a_failure(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM raises is told, and the next call is made anew."""
    engine = open_engine("vllm:org/model")
    monkeypatch.setattr(vllm.LLM, "failure", RuntimeError("EngineCore died"))
    with pytest.raises(EngineUnavailable, match="EngineCore died"):
        await ask(engine, "Hello")
    monkeypatch.setattr(vllm.LLM, "failure", None)
    assert await ask(engine, "Hello")
    await engine.aclose()


async def test_closing(vllm: Any) -> None:
    """What was asked before is answered; a later call loads the model again."""
    engine = open_engine("vllm:org/model")
    asked = asyncio.ensure_future(ask(engine, "Hello"))
    await asyncio.sleep(0)
    await engine.aclose()
    await engine.aclose()
    assert await asked == await ask(engine, "Hello")
    assert len(vllm.LLM.made) == 2
    await engine.aclose()


async def test_a_cancelled_call(vllm: Any) -> None:
    """It is not made, if it was not begun, and disturbs nobody."""
    engine = open_engine("vllm:org/model")
    call = asyncio.ensure_future(ask(engine, "Hello"))
    await asyncio.sleep(0)
    call.cancel()
    assert await ask(engine, "And you?")
    await engine.aclose()


async def test_several_gpus(vllm: Any) -> None:
    """Ray is not asked for GPUs that the process has already."""
    engine = open_engine("vllm:org/model?tensor_parallel_size=2&vision=false")
    assert Capability.VISION not in engine.capabilities
    await engine.load()
    assert vllm.LLM.made[0].arguments["distributed_executor_backend"] == "mp"
    await engine.aclose()


async def test_a_model_that_is_not_there(vllm: Any) -> None:
    """The error has vLLM's reason."""
    with pytest.raises(ConfigError, match=r"org/missing.*Repo id not found"):
        await open_engine("vllm:org/missing").load()


async def test_an_old_vllm(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with the command that helps."""
    monkeypatch.delattr(sys.modules["vllm.sampling_params"], "StructuredOutputsParams")
    with pytest.raises(ConfigError, match=r"too old: pip install -U 'vlmguard-r1\[vllm\]'"):
        await open_engine("vllm:org/model").load()


async def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening needs none of it; the first call says how to install it."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    engine = open_engine("vllm:org/model")
    with pytest.raises(MissingExtra, match=r"pip install 'vlmguard-r1\[vllm\]'"):
        await ask(engine, "Hello")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("vllm:", "name a model"),
        ("vllm:org/model?gpus=2", "known options: dtype, enforce_eager"),
        ("vllm:org/model?max_model_len=many", "not a valid int"),
    ],
)
def test_wrong_specs(spec: str, told: str) -> None:
    """They are told before anything is loaded."""
    with pytest.raises(ConfigError, match=told):
        open_engine(spec)


async def test_what_it_cannot(vllm: Any) -> None:
    """A grammar of llama.cpp, and pictures where it was said that there are none."""
    with pytest.raises(UnsupportedCapability, match="grammar"):
        await ask(open_engine("vllm:org/model"), "Hello", grammar='root ::= "x"')
    chat = Chat.of("What is it?", [PICTURE])
    with pytest.raises(UnsupportedCapability, match="vision"):
        await open_engine("vllm:org/model?vision=false").generate(chat, Sampling())
    assert not vllm.LLM.made
