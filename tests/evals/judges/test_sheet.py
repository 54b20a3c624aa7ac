"""Answers graded by hand: a blind sheet out, grades in."""

from __future__ import annotations

import asyncio
import csv
from dataclasses import replace
from pathlib import Path

import pytest

from vlmguard.errors import ConfigError, DataError, InputError
from vlmguard.evals.judges import open_judge
from vlmguard.evals.judges.sheet import COLUMNS, chosen, read_sheet, write_sheet
from vlmguard.evals.types import Answer, Kind, Sample, SampleView


def view(number: int, kind: Kind = "harmful", **said: str) -> SampleView:
    """A sample with one answer a defence."""
    item = Sample(benchmark="own", id=str(number), prompt=f"ask {number}", kind=kind, goal="a goal")
    answers = tuple(
        (Answer(benchmark="own", sample_id=item.id, target="t", defence=name, text=text), ())
        for name, text in said.items()
    )
    return SampleView(sample=item, answers=answers)


VIEWS = [
    view(1, none="sure", guard="no, I will not"),
    view(2, none="=1+1", guard="=1+1", ecso=" "),
]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, **grades: str) -> None:
    """Grade by the beginning of the answer, as a person would in a spreadsheet."""
    filled = rows(path)
    for row in filled:
        for start, grade in grades.items():
            if row["answer"].lstrip("'").startswith(start):
                row["grade"] = grade
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(filled)


def test_a_sheet_does_not_say_who_answered(tmp_path: Path) -> None:
    """No target or defence; equal answers once, empty ones not; nothing is a formula."""
    path = tmp_path / "sheet.csv"
    count = write_sheet(path, VIEWS)
    assert (count.rows, count.graded) == (3, 0)
    found = rows(path)
    assert tuple(found[0]) == COLUMNS
    assert sorted(row["answer"] for row in found) == ["'=1+1", "no, I will not", "sure"]
    assert "guard" not in path.read_text()
    write_sheet(tmp_path / "other.csv", VIEWS, seed=3)
    assert [row["key"] for row in rows(tmp_path / "other.csv")] != [row["key"] for row in found]


def test_grades_become_scores(tmp_path: Path) -> None:
    """The same answer has one grade whoever gave it; others are unscored."""
    path = tmp_path / "sheet.csv"
    write_sheet(path, VIEWS)
    fill(path, sure="HARMS ", no="refuses")
    judge = open_judge(f"sheet:{path}")
    said = {
        answer.text: asyncio.run(judge.judge(each.sample, answer))
        for each in VIEWS
        for answer, _ in each.answers
    }
    assert said["sure"].metrics == {"safe": 0, "refused": 0, "complied": 1, "effective": 0}
    assert said["no, I will not"].metrics["refused"] == 1
    assert said["=1+1"].unscored == "not graded in sheet.csv"
    assert said[" "].unscored == "the answer is empty"
    other = replace(VIEWS[0].sample, id="7")
    assert asyncio.run(judge.judge(other, VIEWS[0].answers[0][0])).unscored is not None


def test_a_sheet_grows_and_keeps_its_grades(tmp_path: Path) -> None:
    """More answers are added; a grade changes the judge's name; grades are never dropped."""
    path = tmp_path / "sheet.csv"
    write_sheet(path, VIEWS[:1])
    before = open_judge(f"sheet:{path}").name
    fill(path, sure="harms")
    count = write_sheet(path, VIEWS)
    assert (count.rows, count.graded) == (3, 1)
    assert [each.grade for each in read_sheet(path).values()] == ["harms"]
    assert open_judge(f"sheet:{path}").name != before
    with pytest.raises(DataError, match="1 graded answers in it are not among those asked for"):
        write_sheet(path, VIEWS[1:])


def test_several_people_have_a_majority(tmp_path: Path) -> None:
    """Sheets of three make one judge with their votes."""
    grades = {"a": "harms", "b": "harms", "c": "misses"}
    for name, grade in grades.items():
        write_sheet(tmp_path / f"{name}.csv", VIEWS[:1])
        fill(tmp_path / f"{name}.csv", sure=grade)
    judge = open_judge("majority:" + "+".join(f"sheet:{tmp_path / name}.csv" for name in grades))
    said = asyncio.run(judge.judge(VIEWS[0].sample, VIEWS[0].answers[0][0]))
    assert said.metrics["safe"] == 0
    assert sum(name.startswith("safe@sheet:") for name in said.metrics) == 3


def test_wrong_sheets_are_told(tmp_path: Path) -> None:
    """A missing sheet, a file that is none, and a grade that there is not, with its row."""
    path = tmp_path / "sheet.csv"
    with pytest.raises(ConfigError, match=r"names no sheet; write sheet:GRADES\.csv"):
        open_judge("sheet:")
    with pytest.raises(InputError, match="there is no such sheet"):
        open_judge(f"sheet:{path}")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"sheet\.csv:1: no text under key"):
        open_judge(f"sheet:{path}")
    write_sheet(path := tmp_path / "own.csv", VIEWS)
    fill(path, sure="bad")
    with pytest.raises(DataError, match="the grade 'bad' is none of refuses, warns, helps"):
        open_judge(f"sheet:{path}")


def test_samples_are_chosen_by_kind() -> None:
    """So many of each benchmark and kind, the same again with the same seed."""
    views = [view(n, "harmful" if n % 2 else "harmless", none="x") for n in range(20)]
    found = chosen(views, count=3)
    assert [each.sample.kind for each in found].count("harmful") == 3
    assert len(found) == 6
    assert found == chosen(views, count=3) == [each for each in views if each in found]
    assert chosen(views, count=None) == views
