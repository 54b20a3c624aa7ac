"""The public names of the package."""

from __future__ import annotations

import pytest

import vlmguard


def test_every_public_name_is_found() -> None:
    """Each comes from the module that the package says, and `dir` lists it."""
    homes = [name for names in vlmguard._HOMES.values() for name in names]
    assert sorted(homes) == sorted(vlmguard.__all__)
    assert set(vlmguard.__all__) <= set(dir(vlmguard))
    for name in vlmguard.__all__:
        assert getattr(vlmguard, name).__name__ == name


def test_an_unknown_name_is_told() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="no attribute 'Gaurd'"):
        vlmguard.Gaurd  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Gaurd'"):
        from vlmguard import Gaurd  # type: ignore[attr-defined]  # noqa: F401
