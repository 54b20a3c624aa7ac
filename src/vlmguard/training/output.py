"""The folder of a run: whose it is, what it went on from, what it left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from vlmguard.errors import ConfigError
from vlmguard.models.notices import say
from vlmguard.training.dataset import LeftOut
from vlmguard.training.recipe import Recipe

RECIPE_FILE = "recipe.yaml"


def claim(recipe: Recipe) -> None:
    """Make the output folder this run's.

    Raises:
        ConfigError: it holds a run already.
    """
    out = recipe.output
    if (out / RECIPE_FILE).exists():
        raise ConfigError(f"{out} holds a run already: --resume it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(_settings(recipe), sort_keys=False, allow_unicode=True)
    (out / RECIPE_FILE).write_text(text, encoding="utf-8")


def check_same(recipe: Recipe, *, trained: bool = False) -> None:
    """Before resuming: the run in the output folder must be one of this very recipe.

    Args:
        recipe: to go on with.
        trained: it is only measured; another calibration is no other run then.

    Raises:
        ConfigError: there is none, or it was another; says what differs.
    """
    file = recipe.output / RECIPE_FILE
    if not file.is_file():
        raise ConfigError(f"there is no run in {recipe.output} to resume")
    started = yaml.safe_load(file.read_text(encoding="utf-8"))
    wanted = _settings(recipe)
    if trained:
        started["calibration"] = wanted["calibration"]
    if differing := _differing(started, wanted):
        raise ConfigError(
            f"the run in {recipe.output} was started with another recipe; these differ: "
            f"{', '.join(differing)}. Resume with the same, or choose another --out"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; ``None`` where there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for path in found:
        try:
            # The trainer writes this file last; a kill may have cut it short.
            json.loads((path / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            continue
        return path
    return None


def list_left_out(out: Path, left_out: Sequence[LeftOut]) -> None:
    """Write every record that is not trained on to ``left_out.jsonl``, and say how many."""
    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in left_out]
    file = out / "left_out.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for reason, count in Counter(entry.reason for entry in left_out).items():
        say(f"left out: {count} records, {reason}; see {file}")


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What decides the result: not where it is written to, or who is told."""
    return recipe.model_dump(mode="json", exclude={"output": True, "evaluation": {"report_to"}})


def _differing(old: Any, new: Any, prefix: str = "") -> list[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [prefix]
    keys = dict.fromkeys([*old, *new])
    return [
        name
        for key in keys
        for name in _differing(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    ]
