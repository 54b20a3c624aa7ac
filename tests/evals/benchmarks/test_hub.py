"""Benchmarks from the hub."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.evals.benchmarks.layouts import write_json
from vlmguard.errors import MissingExtra
from vlmguard.evals.benchmarks import open_benchmark


def test_files_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """?hub takes what the hub's cache has; the files are in the public layout there."""
    cached = tmp_path / "datasets--my--siuo"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123")
    item = {"question_id": 1, "image": "a.png", "question": "x"}
    write_json(cached / "snapshots" / "abc123" / "siuo_gen.json", [item])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (sample,) = open_benchmark("siuo?hub=my/siuo", tmp_path / "none").samples()
    assert sample.prompt == "x"


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings them."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"vlmguard-r1\[synth\]"):
        next(open_benchmark("xstest?hub").samples())
    with pytest.raises(MissingExtra, match=r"vlmguard-r1\[synth\]"):
        open_benchmark("siuo?hub")
