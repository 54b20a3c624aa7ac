"""The answers of each family: what goes in, what comes out, whole and in pieces."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from tests.engines.transformers.common import (
    BLUE,
    FAMILIES,
    RED,
    SHORT,
    VLMS,
    Engines,
    as_text,
    job,
    loaded_model,
    streamed,
)
from vlmguard.engines import Sampling
from vlmguard.engines import transformers_generate as generating
from vlmguard.types import Chat, Message


@pytest.mark.parametrize("family", FAMILIES)
async def test_same_answer_as_transformers_itself(family: str, engines: Engines) -> None:
    """A greedy answer is token for token what `model.generate` gives for the template's prompt."""
    engine = engines(family)
    chat = Chat.of("Describe it.", [RED, BLUE] if family in VLMS else ())
    completion = await engine.generate(chat, SHORT)
    loaded = await loaded_model(engine)
    content: Any = "Describe it."
    if family in VLMS:
        pictures = [PILImage.open(BytesIO(image.data)) for image in (RED, BLUE)]
        content = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": "Describe it."})
    processor = loaded.format._processor
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs.pop("token_type_ids", None)
    with loaded.adapters.use(None):
        tokens = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    assert completion.text == as_text(loaded, tokens[0, prompt:].tolist())
    assert completion.usage.prompt_tokens == prompt
    assert completion.usage.completion_tokens == tokens.shape[1] - prompt
    assert completion.model == engine.spec


@pytest.mark.parametrize("family", VLMS)
async def test_every_picture_counts(family: str, engines: Engines) -> None:
    """The answer depends on each picture, its pixels and its place; a second one takes tokens."""
    engine = engines(family)
    chats = [
        Chat.of("Compare.", images)
        for images in ((), (RED,), (BLUE,), (RED, BLUE), (BLUE, RED), (RED, RED))
    ]
    # Logprobs of the first token: a change of any pixel moves them.
    sampling = Sampling(max_tokens=1, top_logprobs=1)
    completions = [await engine.generate(chat, sampling) for chat in chats]
    first = [completion.logprobs[0] for completion in completions if completion.logprobs]
    assert len({entry.logprob for entry in first}) == len(chats)
    tokens = [completion.usage.prompt_tokens for completion in completions]
    assert tokens[0] < tokens[1] < tokens[3] == tokens[4]


@pytest.mark.parametrize("family", FAMILIES)
async def test_turns_and_system_prompts(family: str, engines: Engines) -> None:
    """Earlier turns and the system prompt reach the model, pictures of earlier turns too."""
    engine = engines(family)
    images = (RED,) if family in VLMS else ()
    later = (
        Chat.of("First?", images)
        .then(Message(role="assistant", text="One."))
        .then(Message(role="user", text="And now?"))
    )
    alone = Chat.of("And now?")
    led = Chat(messages=(Message(role="system", text="Be brief."), *alone.messages))
    answers = [await engine.generate(chat, SHORT) for chat in (alone, led, later)]
    assert len({answer.text for answer in answers}) == 3
    prompts = [answer.usage.prompt_tokens for answer in answers]
    assert prompts[0] < prompts[1] < prompts[2]


@pytest.mark.parametrize("family", FAMILIES)
async def test_streaming_equals_generating(family: str, engines: Engines) -> None:
    """The pieces of a stream make the same text; the last one carries reason and usage."""
    engine = engines(family)
    chat = Chat.of("Go on.", (RED,) if family in VLMS else ())
    for sampling in (Sampling(max_tokens=16), Sampling(max_tokens=16, temperature=1.0, seed=3)):
        completion = await engine.generate(chat, sampling)
        *deltas, last = await streamed(engine, chat, sampling)
        assert "".join(delta.text for delta in deltas) == completion.text
        assert all(delta.text and delta.finish_reason is None for delta in deltas)
        assert len(deltas) > 1
        assert (last.finish_reason, last.usage) == (completion.finish_reason, completion.usage)


@pytest.mark.parametrize("family", FAMILIES)
async def test_continuing_a_prefix(family: str, engines: Engines) -> None:
    """A last assistant message is continued, without an end or a new turn, and not repeated."""
    engine = engines(family)
    loaded = await loaded_model(engine)
    question = Message(role="user", text="Ready?")
    chat = Chat(messages=(question, Message(role="assistant", text="yes the answer")))
    ids = loaded.format.encode(chat)["input_ids"][0].tolist()
    assert loaded.tokenizer.decode(ids).endswith("yes the answer")
    asked = loaded.format.encode(Chat(messages=(question,)))["input_ids"][0].tolist()
    assert loaded.tokenizer.decode(ids).startswith(loaded.tokenizer.decode(asked).rstrip())
    completion = await engine.generate(chat, SHORT)
    assert not completion.text.startswith("yes")
    assert completion.usage.prompt_tokens == len(ids)


async def test_prefix_keeps_the_space_before_the_next_word(engines: Engines) -> None:
    """A tokenizer like SentencePiece's strips a first space, and a continued text needs it."""
    loaded = await loaded_model(engines("llama"))
    the = loaded.tokenizer.convert_tokens_to_ids("▁the")
    for prefix, text in (("", "the"), ("yes", " the")):
        question = Message(role="user", text="Ready?")
        answer = (Message(role="assistant", text=prefix),) if prefix else ()
        chat = Chat(messages=(question, *answer))
        ids = loaded.format.encode(chat)["input_ids"][0].tolist()
        request = job(chat, Sampling(max_tokens=1))
        state = generating._Answer(request, loaded, ids)
        logits = torch.zeros(len(loaded.tokenizer))
        logits[the] = 9
        assert state.step(logits) == the
        assert state.finish().text == text
