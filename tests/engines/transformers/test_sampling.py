"""Drawing tokens: seeds, logprobs, ends."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.engines.transformers.common import (
    PROMPT,
    RED,
    SHORT,
    Engines,
    loaded_model,
    open_model,
    streamed,
)
from tests.tiny_fixtures import Folders
from vlmguard.engines import Sampling
from vlmguard.engines import transformers_generate as generating
from vlmguard.types import Chat


async def test_logprobs_are_the_models_own(engines: Engines) -> None:
    """Over the vocabulary they sum to 1, greedy takes the first, and sampling changes none."""
    engine = engines("llama")
    loaded = await loaded_model(engine)
    size = len(loaded.tokenizer)
    greedy = await engine.generate(PROMPT, Sampling(max_tokens=3, top_logprobs=size))
    assert greedy.logprobs is not None
    assert len(greedy.logprobs) == greedy.usage.completion_tokens == 3
    for entry in greedy.logprobs:
        assert sum(math.exp(value) for _, value in entry.top) == pytest.approx(1, abs=1e-4)
        assert entry.top[0] == (entry.token, entry.logprob)
        values = [value for _, value in entry.top]
        assert values == sorted(values, reverse=True)
    drawn = await engine.generate(
        PROMPT, Sampling(max_tokens=3, top_logprobs=size, temperature=2.0, top_p=0.9, seed=1)
    )
    assert drawn.logprobs is not None
    assert drawn.logprobs[0].top == greedy.logprobs[0].top
    assert drawn.logprobs[0].logprob in [value for _, value in drawn.logprobs[0].top]


async def test_logprobs_only_where_asked_for(engines: Engines) -> None:
    """Without `top_logprobs` there are none, and with it exactly so many alternatives."""
    engine = engines("llama")
    assert (await engine.generate(PROMPT, SHORT)).logprobs is None
    some = await engine.generate(PROMPT, Sampling(max_tokens=2, top_logprobs=5))
    assert some.logprobs is not None
    assert [len(entry.top) for entry in some.logprobs] == [5, 5]


async def test_seed_repeats_a_draw_and_disturbs_nobody(engines: Engines) -> None:
    """A seed decides the text, and the global generator neither does nor is touched."""
    engine = engines("qwen2_vl")
    chat = Chat.of("Draw.", [RED])

    async def draw(seed: int | None) -> str:
        sampling = Sampling(max_tokens=12, temperature=1.5, seed=seed)
        return (await engine.generate(chat, sampling)).text

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = await draw(7)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert await draw(7) == first
    assert await draw(8) != first
    torch.manual_seed(0)
    unseeded = await draw(None)
    torch.manual_seed(0)
    assert await draw(None) != unseeded


def test_draws_follow_the_distribution() -> None:
    """Over many draws each token comes as often as its probability says, and none outside top_p."""
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05])
    for top_p, expected in ((1.0, probabilities), (0.7, torch.tensor([0, 0.625, 0, 0.375, 0, 0]))):
        draw = generating._drawing(Sampling(temperature=1.0, top_p=top_p, seed=0))
        counts = torch.zeros(6)
        for _ in range(3000):
            counts[draw(probabilities.log())] += 1
        assert torch.allclose(counts / 3000, expected, atol=0.03)
        assert torch.equal(counts == 0, expected == 0)


async def test_narrow_sampling_is_greedy(engines: Engines) -> None:
    """A tiny nucleus, or a temperature near zero, leaves only the likeliest token."""
    engine = engines("llama")
    greedy = (await engine.generate(PROMPT, SHORT)).text
    for narrow in (
        Sampling(max_tokens=8, temperature=1.0, top_p=1e-6),
        Sampling(max_tokens=8, temperature=1e-4),
    ):
        assert (await engine.generate(PROMPT, narrow)).text == greedy


async def test_stop_string_ends_the_answer(engines: Engines) -> None:
    """The answer ends before it, the model stops there, and logprobs end with the text."""
    engine = engines("llama")
    whole = await engine.generate(PROMPT, Sampling(max_tokens=12))
    stop = whole.text[4:6]
    at = whole.text.index(stop)
    sampling = Sampling(max_tokens=200, stop=(stop, "never"), top_logprobs=1)
    completion = await engine.generate(PROMPT, sampling)
    assert completion.text == whole.text[:at]
    assert completion.finish_reason == "stop"
    assert completion.usage.completion_tokens < 12
    assert completion.logprobs is not None
    spelled = "".join(entry.token for entry in completion.logprobs)
    assert spelled.startswith(completion.text)
    assert len(spelled) < len(whole.text)
    deltas = await streamed(engine, PROMPT, sampling)
    assert "".join(delta.text for delta in deltas) == completion.text


async def test_end_of_turn_token_ends_the_answer(folder: Folders, tmp_path: Path) -> None:
    """Every end that the generation configuration lists stops the model, and is not in the text."""
    shutil.copytree(folder("llama"), tmp_path / "model")
    engine = open_model(folder("llama"))
    whole = await engine.generate(PROMPT, Sampling(max_tokens=3, top_logprobs=1))
    loaded = await loaded_model(engine)
    await engine.aclose()
    ids = loaded.tokenizer.convert_tokens_to_ids
    settings = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert whole.logprobs is not None
    last = whole.logprobs[2].token
    settings["eos_token_id"] = [settings["eos_token_id"], ids(last.replace(" ", "▁"))]
    # A model's own defaults must not change what `Sampling` says.
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(settings))
    ended = open_model(tmp_path / "model")
    completion = await ended.generate(PROMPT, Sampling(max_tokens=50, top_logprobs=1))
    await ended.aclose()
    assert completion.finish_reason == "stop"
    assert completion.text == whole.text.removesuffix(last)
    assert completion.usage.completion_tokens == 3
    assert completion.logprobs == whole.logprobs[:2]
