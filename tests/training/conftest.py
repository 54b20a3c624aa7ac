"""Tiny models, built once for all tests of training."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

for _name in ("torch", "transformers", "trl", "datasets", "sklearn", "matplotlib"):
    pytest.importorskip(_name)

import torch  # noqa: E402

from tests import tiny_models  # noqa: E402

LIBRARIES_OWN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
"""What PEFT and TRL warn of in their own doings: runs hide it, tests that call them must too."""

Folders = Callable[[str], Path]


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
    """Family → its saved model."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.FAMILIES[family](tmp_path_factory.mktemp(family))
        return made[family]

    return get
