"""Each kind of damage to a dataset is found, and a whole one is passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_reader import CONTRAST, harmless, write_lines
from tests.data.test_writer import full, risky, write
from vlmguard.data import TrainingRecord
from vlmguard.data.check import check
from vlmguard.errors import DataError


def labelled(number: int, **more: object) -> TrainingRecord:
    return full(number).model_copy(
        update={"evidence": (full(1).evidence[0].model_copy(update={"objects": ()}),), **more}
    )


def problems(path: Path, **options: Any) -> str:
    return "\n".join(str(problem) for problem in check(path, **options).problems)


def contrasts(folder: Path, *lines: object) -> Path:
    write_lines(folder / "a.jsonl", *lines)
    return folder


def test_whole_dataset_passes(tmp_path: Path) -> None:
    """A dataset as written has no problems."""
    pytest.importorskip("pyarrow")
    write(tmp_path, [labelled(1), labelled(2, prompt="Another prompt.")])
    assert problems(tmp_path) == ""


def test_pictures(tmp_path: Path) -> None:
    """Absent, changed and undecodable pictures are told apart; they can be left out."""
    pytest.importorskip("pyarrow")
    records = [labelled(n, prompt=f"Prompt {n}.") for n in range(2)]
    write(tmp_path, records)
    one, other = sorted((tmp_path / "images").rglob("*.png"))
    one.unlink()
    other.write_bytes(other.read_bytes()[:200])
    told = problems(tmp_path)
    assert "cannot be read" in told
    assert "has SHA-256" in told
    assert problems(tmp_path, pictures=False) == ""


def test_undecodable_picture(tmp_path: Path) -> None:
    """A file that has its hash but is no picture is found by decoding it."""
    from vlmguard.data import image_ref
    from vlmguard.types import Image

    garbage = Image(data=b"\x89PNG\r\n\x1a\n" + b"0" * 40, media_type="image/png")
    ref = image_ref(garbage)
    (tmp_path / ref.path).parent.mkdir(parents=True)
    (tmp_path / ref.path).write_bytes(garbage.data)
    write_lines(tmp_path / "r.jsonl", risky(1, images=[ref]).model_dump_json())
    assert "cannot be decoded" in problems(tmp_path / "r.jsonl")


def test_shards(tmp_path: Path) -> None:
    """A changed, an absent and an extra shard are found through dataset.json."""
    pytest.importorskip("pyarrow")
    write(tmp_path, [labelled(n, split="train", prompt=f"{n}") for n in range(2)], shard_records=1)
    first, second = sorted((tmp_path / "data").iterdir())
    (tmp_path / "data" / "extra.parquet").write_bytes(first.read_bytes())
    first.write_bytes(second.read_bytes())
    told = problems(tmp_path)
    assert "is not the file that dataset.json lists" in told
    assert "extra.parquet: is not listed" in told
    assert "stands twice" in told
    second.unlink()
    assert "absent" in problems(tmp_path)


def test_ids_families_and_contradictions(tmp_path: Path) -> None:
    """Ids that repeat, families in two splits, and one input with two verdicts are found."""
    safe = TrainingRecord(
        id="s", family="s", prompt="Fill in the list.", verdict="safe", split="test"
    )
    lines = [
        risky(1, split="train"),
        risky(1, split="test", prompt="Other."),
        safe,
    ]
    path = write_lines(tmp_path / "r.jsonl", *(line.model_dump_json() for line in lines))
    told = problems(path)
    assert f"{path}:2: the id 'family-1/1' stands twice" in told
    assert f"{path}:2: family 'family-1' is in two splits, train and test" in told
    assert f"{path}:3: contradicts r.jsonl:1: the same input, but risky there" in told


def test_lengths_labels_categories(tmp_path: Path) -> None:
    """Texts that the grammar would cut, unknown labels and unknown categories are found."""
    lines = [
        risky(1, textual="x" * 301),
        risky(2, rewrite="Too short.", prompt="b"),
        risky(3, category="boredom", prompt="c"),
        risky(4, prompt="d", evidence=[{"objects": [["web site", 0.4], ["tank", 0.1]]}]),
    ]
    path = write_lines(tmp_path / "r.jsonl", *(line.model_dump_json() for line in lines))
    told = problems(path)
    assert "textual: 301 characters" in told
    assert "rewrite: 10 characters" in told
    assert "category: 'boredom' is none of" in told
    assert "'tank' is no label of the object detector; near it are tank (military)" in told


def test_contrast_set(tmp_path: Path) -> None:
    """A balanced contrast set passes; lone, unbalanced and repeated records are found."""
    folder = contrasts(tmp_path, CONTRAST, harmless())
    assert problems(folder) == ""
    contrasts(tmp_path, CONTRAST, {**CONTRAST, "prompt": "Go on."}, harmless(), harmless())
    told = problems(folder)
    assert "a.jsonl:4: repeats the input of a.jsonl:3" in told
    contrasts(tmp_path, CONTRAST, {**CONTRAST, "textual": "x" * 151})
    told = problems(folder)
    assert "family 'pipe-list' has only risky records" in told
    assert "has 2 risky and only 0 harmless records" in told
    assert "textual: 151 characters; 1 to 150" in told


def test_family_in_two_files(tmp_path: Path) -> None:
    """A family's name belongs to one file."""
    write_lines(tmp_path / "a.jsonl", CONTRAST, harmless())
    write_lines(tmp_path / "b.jsonl", harmless(prompt="?"))
    assert "family 'pipe-list' is also in a.jsonl" in problems(tmp_path)


def test_wrong_lines_do_not_end_the_check(tmp_path: Path) -> None:
    """All wrong lines are told, each with its place."""
    folder = contrasts(tmp_path, CONTRAST, "{", harmless(), {**CONTRAST, "style": "loud"})
    told = problems(folder)
    assert "a.jsonl:2: not valid JSON" in told
    assert "a.jsonl:4: style" in told


def test_coverage(tmp_path: Path) -> None:
    """Required counts are asked of the whole set, cell by cell, with exceptions."""
    folder = contrasts(tmp_path, CONTRAST, harmless())
    (folder / "coverage.yaml").write_text(
        "minimum: {records: 3, family: 2, language: {zh: 1}, category: {hate: 1}}\n"
        "cells:\n"
        "  carrier: {risky: 1, harmless: 1, except: {typed: {hate: {}}}}\n"
    )
    told = problems(folder)
    assert "2 records, 3 are required" in told
    assert "1 families, 2 are required" in told
    assert "language 'zh' has 0 records, 1 are required" in told
    assert "category 'hate' has 0 records" in told
    assert "fraud by carrier 'typed' has 0 risky and 0 harmless records" in told
    assert "hate by carrier" not in told
    assert "violence by carrier" not in told
    assert problems(folder / "a.jsonl") == ""
    table = check(folder).to_json()["coverage"]["carrier"]
    assert table["violence"] == {"typed": [1, 1]}


@pytest.mark.parametrize(
    "text", ["minimum: [", "minimum: {languages: {}}", "minimum: {records: -1}"]
)
def test_wrong_requirements(tmp_path: Path, text: str) -> None:
    """A wrong coverage.yaml is an error that names it, not a check that passes."""
    folder = contrasts(tmp_path, CONTRAST, harmless())
    (folder / "coverage.yaml").write_text(text)
    with pytest.raises(DataError, match=r"coverage\.yaml"):
        check(folder)


def test_own_contrast_set() -> None:
    """The contrast set of this project has no problems."""
    assert problems(Path(__file__).parents[2] / "datasets" / "contrast") == ""
