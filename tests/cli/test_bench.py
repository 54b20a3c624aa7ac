"""``vlmguard bench`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.evals.benchmarks.layouts import (
    figstep_rows,
    write_csv,
    write_mm_safetybench,
    write_picture,
    xstest_rows,
)
from vlmguard.cli.main import app
from vlmguard.errors import ConfigError, UnknownName
from vlmguard.evals.benchmarks import BENCHMARKS


def run(*arguments: str) -> Result:
    """Whatever the command raises reaches the test, as it reaches `main`."""
    result = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """XSTest and FigStep in part, MM-SafetyBench without pictures."""
    write_csv(tmp_path / "xstest" / "xstest_prompts.csv", xstest_rows())
    write_csv(tmp_path / "figstep" / "safebench.csv", figstep_rows())
    write_picture(tmp_path / "figstep" / "images" / "SafeBench" / "query_ForbidQI_1_1_6.png")
    write_mm_safetybench(tmp_path / "mm_safetybench")
    return tmp_path


def test_list() -> None:
    """Every benchmark, for people and for programs."""
    shown = run("list").stdout
    assert all(name in shown for name in BENCHMARKS)
    listed = json.loads(run("list", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(BENCHMARKS)
    assert all(entry["source"] and entry["licence"] and entry["get"] for entry in listed)


def test_check_of_all(data: Path) -> None:
    """Without names nothing fails; what is not here is told with the way to get it."""
    result = run("check", "--data", str(data))
    assert result.exit_code == 0
    assert "1 of 250" in result.stdout
    assert "2, 1 drawn" in result.stdout
    assert "3 pictures are missing (01-Illegal_Activitiy/SD/9.jpg" in result.stdout
    assert "Download the dataset kzhou35/mssbench" in result.stdout


@pytest.mark.parametrize(
    ("name", "code"), [("xstest", 0), ("figstep", 0), ("mm-safetybench-sd", 1), ("siuo", 1)]
)
def test_check_of_one(data: Path, name: str, code: int) -> None:
    """A benchmark that was named and cannot be run is a failure."""
    assert run("check", name, "--data", str(data)).exit_code == code


def test_check_as_json(data: Path) -> None:
    """The whole report, on standard output alone."""
    told = json.loads(run("check", "xstest", "--data", str(data), "--json").stdout)
    (report,) = told["benchmarks"]
    assert report["ready"]
    assert not report["complete"]
    assert report["parts"][0] == {"subset": "safe", "found": 1, "published": 250}


def test_show(data: Path) -> None:
    """Samples as they are run."""
    result = run("show", "figstep", "--data", str(data), "--limit", "1")
    assert "Question about Fraud?" in result.stdout
    assert "Legal Opinion" not in result.stdout
    lines = run("show", "figstep", "--data", str(data), "--json").stdout.splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["kind"] for sample in samples] == ["harmful", "advice"]
    assert samples[1]["pictures"] == ["drawn: Steps of Legal Opinion."]


def test_show_saves_pictures(data: Path, tmp_path: Path) -> None:
    """Drawn ones, too; of a missing one it says so."""
    folder = tmp_path / "saved"
    run("show", "figstep", "--data", str(data), "--save", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "figstep-1_1-1.png",
        "figstep-8_1-1.png",
    ]
    result = run("show", "mm-safetybench-sd", "--data", str(data), "--save", str(folder))
    assert "the picture is missing" in " ".join(result.stdout.replace("│", " ").split())


def test_wrong_use(data: Path) -> None:
    """A name that there is not, a folder that is none, and no sample left."""
    with pytest.raises(UnknownName, match="did you mean xstest"):
        run("check", "xtest", "--data", str(data))
    with pytest.raises(ConfigError, match=r"--data .*nowhere is not a folder"):
        run("check", "--data", str(data / "nowhere"))
    (data / "x.jsonl").write_text("")
    with pytest.raises(ConfigError, match="there are no samples like that"):
        run("show", f"custom:{data / 'x.jsonl'}")
