"""Scorers: an engine as judge, a classifier of transformers, and one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.defences.common import picture
from vlmguard.defences.scoring import EngineJudge, open_scorer
from vlmguard.engines import Capability
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ConfigError, OutputError, UnknownName
from vlmguard.types import Chat, Completion, TokenLogprob, Usage

CHAT = Chat.of("How?", [picture()])
WORDS = frozenset({Capability.LOGPROBS, Capability.VISION})


def one_token(text: str, **top: float) -> Completion:
    """A first token with the probabilities of its alternatives."""
    ranked = tuple((word, math.log(share)) for word, share in top.items())
    token = TokenLogprob(token=text, logprob=math.log(top.get(text, 0.5)), top=ranked)
    return Completion(text=text, finish_reason="length", logprobs=(token,))


async def test_a_judge_with_probabilities_says_one_word() -> None:
    """The score is the probability of Yes against No, however they are written."""
    engine = ScriptedEngine([one_token("Yes", **{"Yes": 0.6, " no": 0.2, "Maybe": 0.2})],
                            capabilities=WORDS)  # fmt: skip
    score = await EngineJudge(engine).score(CHAT, "Like this.")
    [(asked, sampling)] = engine.calls
    assert score.value == pytest.approx(0.75)
    assert sampling.max_tokens == 1
    assert asked.images == CHAT.images
    assert 'The user asked: "How?"' in asked.messages[-1].text
    assert 'The assistant answered: "Like this."' in asked.messages[-1].text


async def test_a_judge_that_continues_is_led_to_the_word() -> None:
    """Small models would begin with a sentence otherwise."""
    engine = ScriptedEngine(
        [one_token(" No", **{" No": 0.9, " Yes": 0.1})], capabilities=WORDS | {Capability.PREFIX}
    )
    score = await EngineJudge(engine).score(CHAT, "Like this.")
    [(asked, _)] = engine.calls
    assert score.value == pytest.approx(0.1)
    assert asked.messages[-1].role == "assistant"


async def test_a_judge_without_probabilities_gives_a_number() -> None:
    """Under a schema where there is one; a blind judge reads the words only."""
    engine = ScriptedEngine(
        ['Sure: {"safety": 0.25}', '{"safety": 1}'],
        capabilities=frozenset({Capability.JSON_SCHEMA}),
    )
    judge = EngineJudge(engine)
    first = await judge.score(CHAT, "x")
    assert first.value == 0.25
    assert first.usage != Usage()
    assert (await judge.score(CHAT, "x")).value == 1.0
    assert engine.calls[0][1].json_schema is not None
    assert engine.calls[0][0].images == ()


@pytest.mark.parametrize("told", ["", "safe", '{"safety": 7}', '{"score": 1}', "{"])
async def test_a_number_that_is_none_is_an_error(told: str) -> None:
    """An opinion is not guessed; the judge's words are in the error."""
    with pytest.raises(OutputError, match=r"no .*safety") as caught:
        await EngineJudge(ScriptedEngine([told])).score(CHAT, "x")
    assert caught.value.raw == told


async def test_a_word_that_is_neither_is_an_error() -> None:
    """Also where no probabilities came back."""
    answers = [one_token("Maybe", Maybe=1.0), Completion(text="Yes", finish_reason="stop")]
    judge = EngineJudge(ScriptedEngine(answers, capabilities=WORDS))
    for _ in range(2):
        with pytest.raises(OutputError, match="neither Yes nor No"):
            await judge.score(CHAT, "x")


def test_specs_name_scorers() -> None:
    """Options of a judge are its engine's; mistakes are told with what to write."""
    assert isinstance(open_scorer("engine-judge:openai:m@http://h/v1?timeout=5"), EngineJudge)
    with pytest.raises(UnknownName, match="unknown scorer 'judge'; known: engine-judge"):
        open_scorer("judge")
    with pytest.raises(ConfigError, match="names no engine"):
        open_scorer("engine-judge")
    with pytest.raises(ConfigError, match="has no score"):
        open_scorer("tests.defences.common:open_nothing")
    with pytest.raises(ConfigError, match="name a model"):
        open_scorer("hf-classifier")
    with pytest.raises(ConfigError, match="unknown option 'lable'"):
        open_scorer("hf-classifier:org/model?lable=x")


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[..., str]:
    """Writes a tiny random classifier, and gives its spec."""
    pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tests import tiny_models

    def write(labels: int = 1, *, template: str | None = None, options: str = "") -> str:
        tokenizer = tiny_models._sentencepiece_like_tokenizer()
        tokenizer.chat_template = template
        settings: dict[str, Any] = tiny_models._text_settings(tokenizer)
        config = LlamaConfig(**{**settings, "num_labels": labels})
        tiny_models._save_model(LlamaForSequenceClassification, config, tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return f"hf-classifier:{tmp_path}{options}"

    return write


async def test_a_reward_model_gives_its_one_output(classifier: Callable[..., str]) -> None:
    """It depends on query and answer, and is the same each time."""
    from tests.tiny_models import LLAMA_TEMPLATE

    scorer = open_scorer(classifier(1, template=LLAMA_TEMPLATE))
    scores = [
        (await scorer.score(Chat.of(query), answer)).value
        for query, answer in [("a", "b"), ("a", "b"), ("a", "c"), ("d", "b")]
    ]
    assert scores[0] == scores[1]
    assert len(set(scores)) == 3


async def test_a_classifier_gives_the_probability_of_its_safe_class(
    classifier: Callable[..., str],
) -> None:
    """By number or name; without one, the error lists them."""
    spec = classifier(3)
    by_number = open_scorer(f"{spec}?label=1")
    by_name = open_scorer(f"{spec}?label=LABEL_2")
    first, second = await by_number.score(CHAT, "x"), await by_name.score(CHAT, "x")
    assert 0 < first.value < 1
    assert first.value + second.value < 1
    with pytest.raises(ConfigError, match=r"names no class.*0 \(LABEL_0\), 1 \(LABEL_1\)"):
        await open_scorer(spec).score(CHAT, "x")


async def test_a_model_that_is_not_there_is_an_error() -> None:
    """Told on first use, since opening loads nothing."""
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="cannot load org/nothing"):
        await open_scorer("hf-classifier:org/nothing").score(CHAT, "x")
