"""Tiny models and engines, built once for all tests of the transformers engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.engines.transformers.common import Engines, open_model
from tests.tiny_fixtures import Folders, fast, folder
from vlmguard.engines.transformers import TransformersEngine

__all__ = ("fast", "folder")


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
