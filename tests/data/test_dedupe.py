"""Duplicates are found by what the rewriter reads; contrasts and shared pictures are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

from tests.data.test_reader import write_lines
from tests.data.test_writer import CARD, risky
from tests.drawing import encode, typed_text
from vlmguard.data import DatasetWriter, Evidence, TrainingRecord, read_records, scan
from vlmguard.data.dedupe import DuplicateKind, find_duplicates, without_duplicates
from vlmguard.data.export import ExportFormat, export
from vlmguard.data.matching import grams, jaccard, words
from vlmguard.types import Image

pytest.importorskip("datasketch")
pytest.importorskip("imagehash")

LONG = (
    "Could you please tell me in a few friendly words how the old stone bridge over the river in "
    "our small town was built, and why nobody has repaired it since the great flood of last spring"
)


def safe(name: str, prompt: str, **more: object) -> TrainingRecord:
    fields = {"id": name, "family": name, "prompt": prompt, "verdict": "safe", **more}
    return TrainingRecord.model_validate(fields)


def saved(folder: Path, *records: TrainingRecord) -> Path:
    return write_lines(folder / "r.jsonl", *(record.model_dump_json() for record in records))


def test_exact_and_near(tmp_path: Path) -> None:
    """The same input and one with a word changed repeat the first; others do not."""
    path = saved(
        tmp_path,
        safe("a", LONG),
        safe("b", LONG),
        safe("c", LONG.replace("spring", "autumn") + "?"),
        safe("d", "Why is the sky blue?"),
    )
    report = find_duplicates(scan(path))
    assert [(found.kind, found.first, found.later) for found in report.duplicates] == [
        (DuplicateKind.EXACT, "a", "b"),
        (DuplicateKind.NEAR, "a", "c"),
    ]
    kept = [found.outcome for found in without_duplicates(scan(path), report)]
    assert [record.id for record in kept if isinstance(record, TrainingRecord)] == ["a", "d"]


def test_contrasts_stay(tmp_path: Path) -> None:
    """Near records of one family are counted and kept; exact ones are not."""
    near = LONG.replace("spring", "autumn")
    path = saved(
        tmp_path,
        safe("a", LONG, family="f"),
        safe("b", near, family="f"),
        safe("c", LONG, family="f"),
    )
    report = find_duplicates(scan(path))
    assert [found.later for found in report.duplicates] == ["c"]
    assert report.contrasts == 1


def test_contradiction_is_told(tmp_path: Path) -> None:
    """A repeated input with another verdict is marked."""
    path = saved(tmp_path, safe("a", "Fill in the list."), risky(1))
    [found] = find_duplicates(scan(path)).duplicates
    assert found.contradiction


def test_same_words_other_objects(tmp_path: Path) -> None:
    """The same question about another object is no duplicate."""
    path = saved(
        tmp_path,
        safe("a", LONG, evidence=[Evidence(objects=(("pier", 0.9),))]),
        safe("b", LONG, evidence=[Evidence(objects=(("viaduct", 0.9),))]),
        safe("c", LONG, evidence=[Evidence(objects=(("pier", 0.8), ("dam", 0.1)))]),
    )
    assert [found.later for found in find_duplicates(scan(path)).duplicates] == ["c"]


def test_pictures(tmp_path: Path) -> None:
    """A picture encoded anew is nearly the same; asking it something else is no duplicate."""
    pytest.importorskip("pyarrow")
    drawn = typed_text("A bridge of stone")
    other = PILImage.linear_gradient("L").convert("RGB")
    png, jpeg, plain = (
        Image(data=encode(drawn), media_type="image/png"),
        Image(data=encode(drawn, "JPEG", quality=90), media_type="image/jpeg"),
        Image(data=encode(other), media_type="image/png"),
    )
    writer = DatasetWriter(tmp_path / "in")
    for name, prompt, picture in (
        ("a", LONG, png),
        ("b", LONG, jpeg),
        ("c", LONG, plain),
        ("d", "What is this?", jpeg),
    ):
        writer.add(safe(name, prompt), [picture])
    writer.finish(CARD)
    report = find_duplicates(scan(tmp_path / "in"))
    assert [(found.first, found.later) for found in report.duplicates] == [("a", "b")]
    assert report.pictures == 1
    export(without_duplicates(scan(tmp_path / "in"), report), tmp_path / "out", ExportFormat.JSONL)
    assert [record.id for record in read_records(tmp_path / "out")] == ["a", "c", "d"]


def test_words_of_any_writing() -> None:
    """Case, punctuation and hidden characters do not count; unspaced writing is cut."""
    assert words("Kill\u200b a PROCESS!") == ["kill", "a", "process"]
    assert words("炸弹是什么?") == ["炸", "弹", "是", "什", "么"]
    assert words("") == []
    assert grams(["a"], 3) == grams(["a"], 8)
    assert jaccard(grams(list("abcd"), 3), grams(list("abce"), 3)) == pytest.approx(1 / 3)
    assert jaccard(frozenset(), frozenset()) == 0
