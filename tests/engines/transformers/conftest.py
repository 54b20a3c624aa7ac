"""Tiny models and engines, built once for all tests of the transformers engine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from tests import tiny_models
from tests.engines.transformers.common import Engines, Folders, open_model
from vlmguard.engines.transformers import TransformersEngine


@pytest.fixture(scope="package", autouse=True)
def _fast() -> Iterator[None]:
    """One thread, for tiny tensors; and garbage collections that skip torch's million objects."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Family → its saved model; ``family-lora`` → an adapter for it."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            family, _, kind = name.partition("-")
            if kind:
                tiny_models.save_adapter(get(family), path, seed=len(made))
            else:
                tiny_models.FAMILIES[family](path)
            made[name] = path
        return made[name]

    return get


@pytest.fixture(scope="package")
def engines(folder: Folders) -> Iterator[Engines]:
    """Family → an engine that stays loaded for all tests."""
    opened: dict[str, TransformersEngine] = {}

    def get(family: str) -> TransformersEngine:
        if family not in opened:
            opened[family] = open_model(folder(family))
        return opened[family]

    yield get

    async def close() -> None:
        for engine in opened.values():
            await engine.aclose()

    asyncio.run(close())
