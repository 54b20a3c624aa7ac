"""What a run is to do, and the command that repeats it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from vlmguard.errors import ConfigError
from vlmguard.evals.plan import EvalPlan, load_plan


def test_the_command_repeats_the_plan(tmp_path: Path) -> None:
    """Every option that is not the default, and judges of a majority as the command line has it."""
    recipe = tmp_path / "plan.yaml"
    recipe.write_text(
        "benchmarks: ['figstep?limit=4', xstest]\n"
        "judges: ['majority:refusal,openai:a@http://h/v1', refusal]\n"
        "defences: none,guard\nmax_tokens: 24\nout: runs/a b\n"
    )
    plan = load_plan(recipe, {"limit": 3})
    words = shlex.split(plan.command())
    assert words[:3] == ["vlmguard", "eval", "figstep?limit=4,xstest"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given == {
        "--target": "smollm2",
        "--defence": "none,guard",
        "--judge": "majority:refusal+openai:a@http://h/v1,refusal",
        "--limit": "3",
        "--max-tokens": "24",
        "--out": "runs/a b",
    }
    again = load_plan(None, {"benchmarks": words[2], "judges": given["--judge"]})
    assert (again.benchmarks, again.judges) == (plan.benchmarks, plan.judges)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmarks: xstest\nspeed: 3\n", r"plan.yaml: speed: Extra inputs"),
        ("benchmarks: []\n", r"plan.yaml: benchmarks: .*at least 1"),
        ("benchmarks: siuo\nrepeats: 2\ntemperature: 1\n", r"^.*plan.yaml: repeats: 2 answers may"),
        ("benchmarks: siuo\nrepeats: 3\n", r"temperature 0 would be one answer; set temperature"),
        (
            "benchmarks: siuo\ncompare_to: eco\n",
            r"compare_to: 'eco' is none of the defences: none,",
        ),
        ("- xstest\n", "not a mapping of settings"),
        ("benchmarks: [xstest\n", "is not YAML"),
    ],
)
def test_wrong_recipes_are_told(text: str, message: str, tmp_path: Path) -> None:
    """An unknown key, a wrong value or a broken file names the file and the place."""
    recipe = tmp_path / "plan.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(recipe, {})


def test_names_count_once() -> None:
    """A name that is given twice is meant once."""
    assert EvalPlan(benchmarks="xstest, xstest,").benchmarks == ("xstest",)  # type: ignore[arg-type]  # as the command line gives it
