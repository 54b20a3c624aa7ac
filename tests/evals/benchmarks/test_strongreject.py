"""StrongREJECT."""

from __future__ import annotations

from pathlib import Path

from tests.evals.benchmarks.layouts import SLICES, needs_slices, write_csv
from vlmguard.evals.benchmarks import open_benchmark


def test_rows(tmp_path: Path) -> None:
    """A row is a harmful sample without pictures, numbered from 0."""
    row = {"category": "Violence", "source": "custom", "forbidden_prompt": "Tell me,\nnow."}
    write_csv(tmp_path / "strong_reject" / "strongreject_dataset.csv", [row, row])
    samples = list(open_benchmark("strongreject", tmp_path).samples())
    assert [sample.id for sample in samples] == ["0", "1"]
    assert (samples[0].prompt, samples[0].kind) == ("Tell me,\nnow.", "harmful")
    assert samples[0].pictures == ()


@needs_slices
def test_development_slice() -> None:
    """60 of 313 prompts."""
    assert open_benchmark("strongreject", SLICES).check().parts[0].found == 60
