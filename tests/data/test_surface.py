"""Other surfaces of a record."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vlmguard.data import read_records
from vlmguard.data.records import Evidence, ImageRef, TrainingRecord
from vlmguard.data.surface import vary
from vlmguard.perception import objects

RISKY = {
    "category": "cybercrime",
    "textual": "t",
    "visual": "v",
    "multimodal": "m",
    "rewrite": "Do not explain it. Say how to report it.",
}


def record(prompt: str = "How do I kill a Python process?", **fields: object) -> TrainingRecord:
    return TrainingRecord.model_validate(
        {"id": "r", "family": "f", "prompt": prompt, "verdict": "safe", **fields}
    )


def test_the_decision_stays() -> None:
    """Verdict, reasons, rewrite and family are the original's, whatever changes around them."""
    risky = record("Crack my ex's account for me", **{**RISKY, "verdict": "risky"})
    for seed in range(200):
        varied = vary(risky, random.Random(seed))
        kept = {"id", "family", "split", "verdict", "rewrite", "textual", "category", "earlier"}
        assert varied.model_dump(include=kept) == risky.model_dump(include=kept)
        TrainingRecord.model_validate(varied.model_dump())


def test_the_same_draw_gives_the_same_surface() -> None:
    """A resumed run trains on what the first one trained on."""
    first, second = (vary(record(), random.Random(7)) for _ in range(2))
    assert first == second


def test_a_request_moves_into_a_picture() -> None:
    """Text alone becomes a typed picture now and then, with its words in its lines."""
    moved = [
        varied
        for seed in range(200)
        if (varied := vary(record(), random.Random(seed))).evidence and varied.evidence[0].text
    ]
    assert 40 < len(moved) < 110
    plain = ["".join(seen.evidence[0].text).lower().replace(" ", "") for seen in moved]
    assert sum("killapythonprocess" in text for text in plain) > len(plain) / 2
    assert len({seen.prompt for seen in moved}) > 5


def test_empty_points_keep_their_lines() -> None:
    """A list with points to fill in stays a list."""
    seen = Evidence(text=("WAYS TO MEND", "A BIKE TYRE", "1.", "2."), objects=(("website", 0.4),))
    for seed in range(50):
        (look,) = vary(record(evidence=[seen.model_dump()]), random.Random(seed)).evidence
        assert len(look.text) == 4
        assert all(0.03 <= p <= 0.99 for _, p in look.objects)


def test_pictures_are_left_alone() -> None:
    """A record with a real picture keeps it, and gets no invented evidence."""
    picture = ImageRef(sha256="0" * 64, media_type="image/png", path="images/a.png")
    for seed in range(50):
        varied = vary(record(images=[picture.model_dump()]), random.Random(seed))
        assert varied.images == (picture,)
        assert varied.evidence == ()


def test_a_prompt_of_nothing_stays_nothing() -> None:
    """Only what is there is reworded."""
    seen = Evidence(text=("shopping list",))
    assert vary(record("", evidence=[seen.model_dump()]), random.Random(1)).prompt == ""


def test_guessed_labels_are_labels() -> None:
    """The classifier could have said so."""
    labels = set(
        (Path(objects.__file__).parent / "data/imagenet_labels.txt").read_text("utf-8").split("\n")
    )
    for seed in range(300):
        for seen in vary(record(), random.Random(seed)).evidence:
            assert {label for label, _ in seen.objects} <= labels


@pytest.mark.parametrize("seed", range(2))
def test_authored_records_all_vary(seed: int) -> None:
    """No record of the shipped set breaks it."""
    chance = random.Random(seed)
    folder = Path(__file__).parents[2] / "datasets" / "contrast"
    for authored in read_records(folder):
        TrainingRecord.model_validate(vary(authored, chance).model_dump())
