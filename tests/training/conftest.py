"""Tiny models, built once for all tests of training."""

from __future__ import annotations

import pytest

for _name in ("torch", "transformers", "trl", "datasets", "sklearn", "matplotlib"):
    pytest.importorskip(_name)

from tests.tiny_fixtures import Folders, fast, folder  # noqa: E402

__all__ = ("Folders", "fast", "folder")

LIBRARIES_OWN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
"""What PEFT and TRL warn of in their own doings: runs hide it, tests that call them must too."""
