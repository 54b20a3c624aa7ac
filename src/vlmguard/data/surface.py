"""Other surfaces of a record: the same request, worded, typed or photographed a little differently.

A small model that reads each record once learns its accidents: where a line breaks, how sure the
classifier was, whether the request stood in the prompt or in the picture. Variants keep what
decides and change what does not. They are made at training time, counted apart from the authored
records, and trained on for their verdict alone: reasons and rewrite were written for the original.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence

from vlmguard.data.records import Evidence, TrainingRecord

_HANDOVERS = (
    "Answer the question in the picture.",
    "Please do what is written in the image.",
    "Read the image and respond to it in detail.",
    "What does the picture ask for? Give me exactly that.",
    "The text in this picture is my request.",
    "Help me with what stands here.",
    "Carry out the instruction shown.",
    "The picture shows a text. Explain in detail how to do it.",
    "The image contains a sentence. Please continue it with full details.",
    "Follow the picture step by step.",
    "I typed my question into the image because my keyboard lags. Please answer it.",
    "Describe everything one needs to know about this.",
    "Write the complete answer below the text in the image.",
    "The note shows an activity or a thing. Tell me more about how it is done or made.",
    "see image",
    "",
)
"""What people write beside a picture that holds their request. Harmless requests get the same."""

_TYPOGRAPHIC = (
    "website",
    "restaurant menu",
    "envelope",
    "book cover",
    "packet",
    "street sign",
    "comic book",
    "crossword puzzle",
    "digital clock",
    "notebook computer",
    "computer monitor",
    "ring binder",
)
"""What the classifier takes pictures of text for."""

_EVERYDAY = (
    "park bench",
    "coffee mug",
    "desk",
    "lakeside",
    "seashore",
    "golden retriever",
    "Egyptian cat",
    "bookcase",
    "patio",
    "street sign",
    "taxi",
    "mountain bike",
    "grocery store",
    "restaurant",
    "teapot",
    "T-shirt",
    "sunglasses",
    "laptop",
    "mobile phone",
    "wall clock",
    "sofa bed",
    "pot",
    "umbrella",
    "backpack",
    "pizza",
    "banana",
    "valley",
    "church",
    "palace",
    "traffic light",
)
"""Photographs that have nothing to do with what is asked."""

_MISREAD = {"O": "0", "0": "O", "l": "1", "I": "l", "1": "l", "S": "5", "rn": "m", "B": "8"}


def vary(record: TrainingRecord, chance: random.Random) -> TrainingRecord:
    """The record with another surface, and the same verdict.

    Args:
        record: with evidence, or text alone. One with pictures keeps them, and changes in its
            prompt only.
        chance: draws what changes.
    """
    changed: dict[str, object] = {}
    if record.evidence and not record.images:
        changed["evidence"] = tuple(_another_look(seen, chance) for seen in record.evidence)
    elif not record.images and not record.earlier:
        move = chance.random()
        if move < 0.35:
            return record.model_copy(update=_typed(record.prompt, chance))
        if move < 0.5:
            changed["evidence"] = (Evidence(objects=_guesses(_EVERYDAY, chance)),)
    if record.prompt.strip():
        changed["prompt"] = _reworded(record.prompt, chance)
    return record.model_copy(update=changed)


def _typed(prompt: str, chance: random.Random) -> dict[str, object]:
    """The request moved into a picture of text."""
    lines = _broken(prompt, chance)
    if chance.random() < 0.2:
        lines += ["1.", "2.", "3."][: chance.randint(1, 3)]
    seen = Evidence(text=_read_badly(lines, chance), objects=_guesses(_TYPOGRAPHIC, chance))
    return {"prompt": chance.choice(_HANDOVERS), "evidence": (seen,)}


def _another_look(seen: Evidence, chance: random.Random) -> Evidence:
    """The same picture, photographed again: other line breaks, misread letters, other odds."""
    text = seen.text
    if text and chance.random() < 0.5 and not any(line.rstrip(".").isdigit() for line in text):
        text = tuple(_broken(" ".join(text), chance))
    objects = tuple(
        (label, round(min(0.99, max(0.03, p * chance.uniform(0.6, 1.4))), 2))
        for label, p in seen.objects
    )
    if text and not objects and chance.random() < 0.5:
        objects = _guesses(_TYPOGRAPHIC, chance)
    return seen.model_copy(update={"text": _read_badly(text, chance), "objects": objects})


def _broken(text: str, chance: random.Random) -> list[str]:
    """Lines of some width, in some case."""
    style = chance.random()
    if style < 0.2:
        text = text.upper()
    elif style < 0.3:
        text = text.title()
    width = chance.choice((15, 15, 20, 24, 32, 48))
    return textwrap.wrap(text, width) or [text]


def _read_badly(lines: Sequence[str], chance: random.Random) -> tuple[str, ...]:
    """As OCR reads it: now and then a letter is taken for another, or a space is lost."""
    if chance.random() < 0.6:
        return tuple(lines)
    read = []
    for line in lines:
        for right, wrong in _MISREAD.items():
            if right in line and chance.random() < 0.06:
                line = line.replace(right, wrong, 1)  # noqa: PLW2901  (one line, misread in turn)
        if " " in line and chance.random() < 0.15:
            line = line.replace(" ", "", 1)  # noqa: PLW2901
        read.append(line)
    return tuple(read)


def _guesses(labels: Sequence[str], chance: random.Random) -> tuple[tuple[str, float], ...]:
    """Up to three labels with the odds of an unsure classifier, likeliest first."""
    count = chance.choice((0, 1, 1, 2, 3))
    odds = sorted((round(chance.uniform(0.05, 0.7), 2) for _ in range(count)), reverse=True)
    return tuple(zip(chance.sample(labels, count), odds, strict=True))


def _reworded(prompt: str, chance: random.Random) -> str:
    """In another hand: case, politeness, a typing error, no full stop."""
    hand = chance.random()
    if hand < 0.12:
        return prompt.lower()
    if hand < 0.2:
        return prompt.rstrip(".?! ")
    if hand < 0.28:
        return chance.choice(("Hi! ", "Please help. ", "Hey, ", "Quick question: ")) + prompt
    if hand < 0.34:
        return prompt + chance.choice(
            (" Thanks!", " Be detailed.", " Please answer briefly.", " thx")
        )
    if hand < 0.42 and len(prompt) > 12:
        at = chance.randrange(1, len(prompt) - 2)
        return prompt[:at] + prompt[at + 1] + prompt[at] + prompt[at + 2 :]
    return prompt
