"""``vlmguard.json``: read beside the adapter, and checked before the adapter is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmguard.errors import ConfigError
from vlmguard.rewriting.format import Layout
from vlmguard.rewriting.metadata import (
    METADATA_FILE,
    AdapterMetadata,
    Calibration,
    check,
    load_metadata,
)

FACTS: dict[str, Any] = {
    "name": "tiny",
    "layout": "verdict-first",
    "prompt": {"file": "trained.md", "hash": "0123456789ab"},
    "base": {"name": "smollm2", "architecture": "llama", "sha256": "a" * 64},
    "thresholds": {"strict": 0.2, "balanced": 0.4, "permissive": 0.6},
    "categories": ["violence"],
    "created": "2026-01-01T00:00:00+00:00",
    "versions": {"torch": "2.13.0"},
    "seed": 0,
    "data": {"sources": {"contrast": 2}, "sha256": "b" * 64, "records": {"train": 2}},
    "figures": {"validation": {"auc": 0.9, "loss": None}},
    "recipe": {},
}


def metadata(**changes: Any) -> AdapterMetadata:
    """Sound facts with some changed."""
    return AdapterMetadata.model_validate({**FACTS, **changes})


def test_it_is_found_beside_the_adapter(tmp_path: Path) -> None:
    """By the GGUF file, by the folder, or by its own path."""
    file = tmp_path / METADATA_FILE
    file.write_text(metadata().model_dump_json(), encoding="utf-8")
    (tmp_path / "adapter.gguf").touch()
    for path in (tmp_path / "adapter.gguf", tmp_path, file):
        assert load_metadata(path) == metadata()


def test_a_lone_adapter_and_damaged_facts_are_errors(tmp_path: Path) -> None:
    """The message says what is missing or wrong."""
    with pytest.raises(ConfigError, match=r"no vlmguard\.json beside it"):
        load_metadata(tmp_path / "adapter.gguf")
    (tmp_path / METADATA_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is damaged: the file"):
        load_metadata(tmp_path)
    text = metadata().model_dump_json().replace("verdict-first", "sideways")
    (tmp_path / METADATA_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is damaged: layout"):
        load_metadata(tmp_path)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"strict": 0.2, "balanced": 0.4}, "missing for permissive"),
        ({"strict": 0.5, "balanced": 0.4, "permissive": 0.6}, "must not fall"),
        ({"strict": 0.0, "balanced": 0.4, "permissive": 0.6}, "greater than 0"),
    ],
)
def test_thresholds_are_complete_and_in_order(thresholds: dict[str, float], message: str) -> None:
    """Strict must not let more pass than permissive."""
    with pytest.raises(ValueError, match=message):
        metadata(thresholds=thresholds)


def test_a_mismatch_says_everything_that_differs() -> None:
    """Layout, prompt and base, each with both values; what is not known is not compared."""
    check(metadata())
    check(metadata(), layout=Layout.VERDICT_FIRST, prompt_hash="0123456789ab", base_sha256="a" * 64)
    with pytest.raises(ConfigError) as caught:
        check(
            metadata(), layout=Layout.REASON_FIRST, prompt_hash="ffffffffffff", base_sha256="c" * 64
        )
    told = str(caught.value)
    assert "the layout is reason-first, trained with verdict-first" in told
    assert "the prompt is ffffffffffff, trained with 0123456789ab" in told
    assert "the base is cccccccccccc…, trained with aaaaaaaaaaaa…" in told
    many_files = {"name": "org/model", "architecture": "qwen2_vl", "sighted": True}
    check(metadata(base=many_files), base_sha256="c" * 64)


def test_calibration_keeps_order_and_bounds() -> None:
    """Certainties stay finite, and a higher risk is a higher probability."""
    calibration = Calibration(slope=0.5, intercept=-1.0)
    found = [calibration.apply(risk) for risk in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] < 1
    assert found[2] == pytest.approx(0.2689, abs=1e-4)
