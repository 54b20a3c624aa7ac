"""Fixtures of tests that run tiny models; their packages' conftest.py import them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny_models

Folders = Callable[[str], Path]


@pytest.fixture(scope="package", autouse=True)
def fast() -> Iterator[None]:
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
