"""Recipes: those that are shipped are sound, and wrong ones are told what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmguard.errors import ConfigError
from vlmguard.training import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


TRAINING = sorted(file for file in RECIPES.glob("*.yaml") if not file.stem.startswith("eval"))


@pytest.mark.parametrize("file", TRAINING, ids=lambda path: path.stem)
def test_shipped_recipes_can_be_read(file: Path) -> None:
    """All keys are known, and data of this repository is there."""
    recipe = load_recipe(file)
    assert recipe.output.name == file.stem
    for path in recipe.data.paths:
        assert path.exists() or "runs" in path.parts


def write(folder: Path, text: str) -> Path:
    """A recipe file."""
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


GOOD = "name: a\nmodel: smollm2\noutput: o\ndata: {paths: [sub/d.jsonl]}\n"


def test_data_is_found_from_the_recipe_and_settings_from_the_command(tmp_path: Path) -> None:
    """Paths of the file are relative to it; overrides win, and are YAML."""
    recipe = load_recipe(
        write(tmp_path, GOOD),
        ["optimizer.epochs=0.5", "lora.targets=[q_proj]", "output=elsewhere", "data.limit=null"],
    )
    assert recipe.data.paths == (tmp_path / "sub" / "d.jsonl",)
    assert recipe.optimizer.epochs == 0.5
    assert recipe.lora.targets == ("q_proj",)
    assert recipe.output == Path("elsewhere")
    given = load_recipe(write(tmp_path, GOOD), ["data.paths=[here.jsonl]"])
    assert given.data.paths == (Path("here.jsonl"),)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD + "epochs: 3\n", (), "epochs: Extra inputs"),
        (GOOD + "optimizer: {learning_rate: 0}\n", (), "optimizer.learning_rate: .*greater than 0"),
        (GOOD + "tuning: full\nexport: {gguf: true}\n", (), "an adapter's format"),
        (GOOD + "calibration: {strict: 0.99, balanced: 0.9}\n", (), "must rise"),
        ("name: a\n", (), "model: Field required"),
        ("- 1\n", (), "not a mapping"),
        ("a: [\n", (), "is not YAML"),
        (GOOD, ["epochs"], "key=value"),
        (GOOD, ["name.x=1"], "name is a value"),
        (GOOD, ["data.limit=[1"], "not YAML"),
        (GOOD, ["layout=sideways"], "layout: .*verdict-first"),
    ],
)
def test_a_wrong_recipe_is_told_what_is_wrong(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    """The setting and the reason are in the message."""
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, text), overrides)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the reason of the operating system."""
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
