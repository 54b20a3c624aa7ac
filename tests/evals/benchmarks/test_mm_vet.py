"""MM-Vet, official and as LLaVA lists its questions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.drawing import encode, shapes
from tests.evals.benchmarks.layouts import (
    SLICES,
    needs_slices,
    write_json,
    write_lines,
    write_picture,
)
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import open_benchmark


def test_official(tmp_path: Path) -> None:
    """The reference keeps its <AND> and <OR>; the capabilities are the category."""
    item = {
        "imagename": "v1_0.png",
        "question": "What is x?",
        "answer": "-1<AND>-5",
        "capability": ["ocr", "math"],
    }
    write_json(tmp_path / "mm-vet" / "mm-vet.json", {"v1_0": item})
    write_picture(tmp_path / "mm-vet" / "images" / "v1_0.png")
    benchmark = open_benchmark("mm-vet", tmp_path)
    (sample,) = benchmark.samples()
    assert (sample.id, sample.kind, sample.category) == ("v1_0", "harmless", "math+ocr")
    assert sample.reference == {"reference_answer": "-1<AND>-5"}
    assert benchmark.check().ready


def test_questions_alone(tmp_path: Path) -> None:
    """Without reference answers the check says that nothing can be scored."""
    item = {"image": "v1_0.png", "text": "What is x?", "category": "conv", "question_id": 0}
    write_lines(tmp_path / "mm_vet" / "questions.jsonl", [item])
    benchmark = open_benchmark("mm-vet", tmp_path)
    (sample,) = benchmark.samples()
    assert (sample.id, sample.reference) == ("v1_0", {})
    assert "no reference answers" in benchmark.check().notes[0]


def test_through_datasets(tmp_path: Path) -> None:
    """?hub streams questions, answers and pictures of the only split."""
    row = {
        "image": {"bytes": encode(shapes(size=(20, 20))), "path": None},
        "question": "What is x?",
        "answer": "5",
        "capability": ["math"],
    }
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "hub" / "test.parquet")
    benchmark = open_benchmark(f"mm-vet?hub={tmp_path / 'hub'}", tmp_path)
    (sample,) = benchmark.samples()
    assert (sample.id, sample.reference, sample.category) == (
        "v1_0",
        {"reference_answer": "5"},
        "math",
    )
    assert sample.chat().images
    assert benchmark.check().ready


def test_another_form(tmp_path: Path) -> None:
    """A list in place of an object is an error."""
    write_json(tmp_path / "mm_vet" / "mm-vet.json", [])
    with pytest.raises(DataError, match="not an object of questions"):
        list(open_benchmark("mm-vet", tmp_path).samples())


@needs_slices
def test_development_slice() -> None:
    """20 questions, for the format."""
    assert open_benchmark("mm-vet", SLICES).check().parts[0].found == 20
