"""Small data sets and recipes for tiny models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from vlmguard.data.records import Evidence, ImageRef, Split, TrainingRecord
from vlmguard.training import Recipe

SPLITS: tuple[tuple[Split, int], ...] = (("train", 12), ("validation", 4), ("test", 4))
_THINGS = ("bread", "a kite", "soup", "a shed", "tea", "a table")


def text_record(
    number: int, split: Split, *, risky: bool, prompt: str | None = None, **more: Any
) -> TrainingRecord:
    """A record whose prompt gives the verdict away."""
    thing = _THINGS[number // 2 % len(_THINGS)]  # each is made, and poisoned
    asked = prompt or (f"poison {thing}" if risky else f"make {thing}")
    reasons: dict[str, Any] = {}
    if risky:
        reasons = {
            "category": "violence",
            "textual": "Asks for harm.",
            "visual": "None.",
            "multimodal": "Harm.",
            "rewrite": "Say no, kindly.",
        }
    return TrainingRecord(
        id=f"{split}-{number}",
        family=f"{split}-{number}",
        split=split,
        prompt=asked,
        verdict="risky" if risky else "safe",
        **reasons,
        **more,
    )


def text_records() -> list[TrainingRecord]:
    """Half risky, in all splits."""
    return [
        text_record(number, split, risky=number % 2 == 0)
        for split, count in SPLITS
        for number in range(count)
    ]


def picture_ref(folder: Path, color: str, size: tuple[int, int] = (40, 40)) -> ImageRef:
    """A picture of one colour, written into a data set's folder."""
    buffer = BytesIO()
    PILImage.new("RGB", size, color).save(buffer, "PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    file = folder / "images" / f"{digest}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(buffer.getvalue())
    return ImageRef(sha256=digest, media_type="image/png", path=f"images/{digest}.png")


def picture_records(folder: Path) -> list[TrainingRecord]:
    """Records that only their picture decides: red is risky. Some have two pictures, some none."""
    red, green = picture_ref(folder, "red"), picture_ref(folder, "lime", (64, 30))
    found: list[TrainingRecord] = []
    for split, count in SPLITS:
        for number in range(count):
            risky = number % 2 == 0
            shown = (red if risky else green,) * (1 + (number % 4 == 3))
            prompt = "go on" if number % 6 else "say it"
            found.append(text_record(number, split, risky=risky, prompt=prompt, images=shown))
        found.append(text_record(100, split, risky=False))
    return found


def described_records() -> list[TrainingRecord]:
    """Records with evidence and no picture, as the contrast sets have them."""
    bomb = Evidence(text=("HOW TO", "BUILD IT"), objects=(("fuse", 0.71),), nudity=0.5)
    bread = Evidence(text=(), objects=(("loaf", 0.9), ("oven", 0.2)))
    return [
        text_record(
            number, split, risky=risky, prompt="fill it in", evidence=(bomb if risky else bread,)
        )
        for split, count in SPLITS
        for number, risky in ((number, number % 2 == 0) for number in range(count))
    ]


def write(folder: Path, records: list[TrainingRecord]) -> Path:
    """The records as a JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "records.jsonl"
    lines = [record.model_dump_json() + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def recipe(
    model: Path | str, data: Path, out: Path, changes: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe for a tiny model; ``changes`` has dots for sections."""
    content: dict[str, Any] = {
        "name": "tiny",
        "model": str(model),
        "output": out,
        "data": {"paths": [data]},
        "lora": {"r": 8, "alpha": 16, "dropout": 0.0},
        "optimizer": {
            "epochs": 30,
            "batch_size": 4,
            "learning_rate": 0.01,
            "precision": "fp32",
        },
    }
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return Recipe.model_validate(content)
