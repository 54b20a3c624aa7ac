"""Datasets of the hub, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmguard.data.hub import HubTable, hub_folder
from vlmguard.errors import DataError


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    """The error says what to check."""
    with pytest.raises(DataError, match="cannot be downloaded from the Hugging Face Hub"):
        hub_folder("vlmguard-tests/none")
    table = HubTable(dataset=str(tmp_path / "none"), split="train")
    with pytest.raises(DataError, match=r"cannot be read from the Hugging Face Hub.*hf auth login"):
        next(table.rows())
    with pytest.raises(DataError, match="cannot be read from the Hugging Face Hub"):
        table.columns()


@pytest.mark.slow
def test_a_folder_in_the_layout_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows through the datasets library; without a split, the only one."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"a": "one"}\n{"a": "two"}\n')
    table = HubTable(dataset=str(folder))
    assert table.columns() == ("a",)
    assert [(row.number, row.text("a")) for row in table.rows()] == [(1, "one"), (2, "two")]
