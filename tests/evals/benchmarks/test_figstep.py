"""FigStep's layouts, and its drawn pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.benchmarks.layouts import (
    SLICES,
    figstep_rows,
    needs_slices,
    write_csv,
    write_picture,
)
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import DrawnPicture, FilePicture, open_benchmark


def test_repository_layout(tmp_path: Path) -> None:
    """The repository's folders are read; a missing picture is drawn, another kind is advice."""
    data = tmp_path / "FigStep" / "data"
    write_csv(data / "question" / "safebench.csv", figstep_rows())
    picture = write_picture(data / "images" / "SafeBench" / "query_ForbidQI_1_1_6.png")
    first, second = open_benchmark("figstep", tmp_path).samples()
    assert (first.id, first.kind, first.category) == ("1_1", "harmful", "Fraud")
    assert first.goal == "Question about Fraud?"
    assert "list numbered 1, 2, and 3" in first.prompt
    assert isinstance(first.pictures[0], FilePicture)
    assert first.pictures[0].path == picture
    assert (second.id, second.kind) == ("8_1", "advice")
    assert isinstance(second.pictures[0], DrawnPicture)
    assert second.chat().images[0].media_type == "image/png"


def test_tiny_alone_is_read_and_told(tmp_path: Path) -> None:
    """Where only the tiny list is, it is read, and the check says so."""
    write_csv(tmp_path / "figstep" / "SafeBench-Tiny.csv", figstep_rows())
    check = open_benchmark("figstep", tmp_path).check()
    assert check.ready
    assert not check.complete
    assert check.drawn == 2
    assert "SafeBench-Tiny" in check.notes[0]
    tiny = open_benchmark("figstep?tiny", tmp_path).check()
    assert tiny.notes == ()
    assert tiny.parts[0].published == 50


def test_tiny_asked_for_is_never_the_full_list(tmp_path: Path) -> None:
    """?tiny without the tiny list is an error, not the full one."""
    write_csv(tmp_path / "figstep" / "safebench.csv", figstep_rows())
    with pytest.raises(DataError, match=r"no SafeBench-Tiny\.csv"):
        list(open_benchmark("figstep?tiny", tmp_path).samples())


@needs_slices
def test_development_slice() -> None:
    """The development slice has 50 questions and all their pictures, 15 of them for advice."""
    check = open_benchmark("figstep?tiny", SLICES).check()
    assert check.complete
    assert check.kinds == {"harmful": 35, "advice": 15}
    assert (check.pictures, check.drawn) == (50, 0)
