"""From a spec to a rewriter: zero-shot, trained and checked, or the target itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ConfigError
from vlmguard.models import KNOWN
from vlmguard.prompts import load_prompt
from vlmguard.rewriting import open_rewriter, opening
from vlmguard.rewriting.format import Layout
from vlmguard.rewriting.metadata import (
    METADATA_FILE,
    AdapterMetadata,
    BaseFacts,
    DataFacts,
    PromptFacts,
)

TRAINED = load_prompt("vlmguard.rewriting", "trained.md")


def metadata(**changes: Any) -> AdapterMetadata:
    values: dict[str, Any] = {
        "name": "mine",
        "layout": Layout.REASON_FIRST,
        "prompt": PromptFacts(file="trained.md", hash=TRAINED.hash),
        "base": BaseFacts(name="smollm2", architecture="llama", sha256=KNOWN["smollm2"].sha256),
        "thresholds": {"strict": 0.2, "balanced": 0.4, "permissive": 0.8},
        "categories": ("fraud",),
        "files": {"gguf": "adapter.gguf"},
        "created": "2026-01-01T00:00:00Z",
        "versions": {},
        "seed": 0,
        "data": DataFacts(sources={}, sha256="0" * 64, records={}),
        "figures": {},
        "recipe": {},
    }
    return AdapterMetadata(**(values | changes))


@dataclass(slots=True)
class Opened:
    """Which engine specs were opened."""

    specs: list[str]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Engines are not loaded here: what matters is which would be."""
    record = Opened(specs=[])

    def fake(spec: str) -> ScriptedEngine:
        record.specs.append(spec)
        return ScriptedEngine([], spec=spec)

    monkeypatch.setattr(opening, "open_engine", fake)
    return record


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(b"GGUF")
    return path


def write(folder: Path, facts: AdapterMetadata) -> None:
    (folder / METADATA_FILE).write_text(facts.model_dump_json())


def test_a_trained_adapter_is_served_as_it_was_trained(adapter: Path, opened: Opened) -> None:
    """Layout, prompt and thresholds come from beside it."""
    write(adapter.parent, metadata())
    spec = f"smollm2?adapter={adapter}"
    rewriter = open_rewriter(spec)
    assert rewriter.name == spec
    assert rewriter._layout is Layout.REASON_FIRST
    assert rewriter._prompt.hash == TRAINED.hash
    assert rewriter._thresholds == {"strict": 0.2, "balanced": 0.4, "permissive": 0.8}
    assert opened.specs == [spec]


def test_an_adapter_that_nobody_describes_is_refused(adapter: Path, opened: Opened) -> None:
    """It would not fail, it would judge badly."""
    with pytest.raises(ConfigError, match=METADATA_FILE):
        open_rewriter(f"smollm2?adapter={adapter}")
    assert open_rewriter(f"zero-shot:smollm2?adapter={adapter}").name.startswith("zero-shot:")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": PromptFacts(file="trained.md", hash="0" * 12)}, "the prompt is"),
        (
            {"base": BaseFacts(name="other", architecture="llama", sha256="1" * 64)},
            "the base is",
        ),
    ],
)
def test_a_mismatch_says_what_differs(
    adapter: Path, opened: Opened, changes: dict[str, Any], told: str
) -> None:
    """Not a guard that quietly judges by the wrong prompt."""
    write(adapter.parent, metadata(**changes))
    with pytest.raises(ConfigError, match=told):
        open_rewriter(f"smollm2?adapter={adapter}")
    assert opened.specs == []


def test_a_damaged_description_is_told(adapter: Path, opened: Opened) -> None:
    """With the field."""
    write(adapter.parent, metadata())
    file = adapter.parent / METADATA_FILE
    file.write_text(file.read_text().replace("reason-first", "poem-first"))
    with pytest.raises(ConfigError, match="layout"):
        open_rewriter(f"smollm2?adapter={adapter}")


def test_the_shipped_adapter_is_the_default(
    adapter: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`smollm2` as a rewriter is the trained one; its name stays short."""
    write(adapter.parent, metadata())
    monkeypatch.setattr(opening, "shipped_adapter", lambda _: adapter.parent)
    rewriter = open_rewriter("smollm2?threads=1")
    assert rewriter.name == "smollm2?threads=1"
    assert opened.specs == [f"smollm2?threads=1&adapter={adapter}"]


def test_without_a_shipped_adapter_an_engine_is_used_zero_shot(opened: Opened) -> None:
    """Any capable model works without training."""
    rewriter = open_rewriter("openai:m@http://127.0.0.1:1/v1")
    assert rewriter._prompt.name.endswith("zero_shot.md")
    assert rewriter._thresholds is None
    assert opened.specs == ["openai:m@http://127.0.0.1:1/v1"]


def test_a_trained_model_behind_a_server_is_served_as_it_was_trained(
    tmp_path: Path, opened: Opened
) -> None:
    """The server knows weights only; the folder of the training says prompt, layout, thresholds."""
    write(tmp_path, metadata(base=BaseFacts(name="Qwen/Qwen2-VL-7B", architecture="qwen2_vl")))
    spec = f"openai:mine@http://localhost:8010/v1?timeout=9&trained={tmp_path}"
    rewriter = open_rewriter(spec)
    assert rewriter.prompt.hash == TRAINED.hash
    assert rewriter.thresholds == {"strict": 0.2, "balanced": 0.4, "permissive": 0.8}
    assert opened.specs == ["openai:mine@http://localhost:8010/v1?timeout=9"]
    with pytest.raises(ConfigError, match=METADATA_FILE):
        open_rewriter("openai:mine@http://localhost:8010/v1?trained=/nowhere")
