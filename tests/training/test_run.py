"""Whole runs on a tiny text model: training, resuming, exporting, and what the guard loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import common
from tests.training.conftest import Folders
from vlmguard.rewriting import load_policy, open_rewriter
from vlmguard.rewriting.metadata import load_metadata
from vlmguard.training import run
from vlmguard.types import Chat


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text records, one of them far too long."""
    long = common.text_record(99, "train", risky=False, prompt="ah " * 900)
    return common.write(tmp_path_factory.mktemp("data"), [*common.text_records(), long])


@pytest.fixture(scope="module")
def trained(folder: Folders, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run long enough to tell the verdicts apart."""
    out = tmp_path_factory.mktemp("run") / "out"
    recipe = common.recipe(
        folder("llama"),
        data,
        out,
        {"optimizer.epochs": 9, "evaluation.generate": 1, "export.merged": True},
    )
    run.train(run.prepare(recipe))
    return out


def test_the_adapter_judges_as_it_was_trained(folder: Folders, trained: Path) -> None:
    """The engine serves the adapter, and it tells poison from bread in prompts it never saw."""
    import asyncio

    rewriter = open_rewriter(f"hf:{folder('llama')}?adapter={trained / 'adapter'}")

    async def risk(prompt: str) -> float:
        return (await rewriter.rewrite(Chat.of(prompt), load_policy("permissive"))).risk

    async def both() -> tuple[float, float]:
        return await risk("make a kite!"), await risk("make soup")

    thresholds = load_metadata(trained / "adapter").thresholds
    assert max(asyncio.run(both())) < thresholds["balanced"]
    asyncio.run(rewriter.engine.aclose())
