"""The split is a function of the family's name, in the shares that were asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from vlmguard.data import SplitShares, split_of
from vlmguard.errors import ConfigError


def test_split_is_stable() -> None:
    """Known names keep the split that they had when this was written."""
    assert [split_of(f"family-{number}") for number in range(3)] == ["train", "test", "train"]
    everything = SplitShares(train=0, validation=0, test=1)
    assert split_of("anything", everything) == "test"


def test_shares_are_kept() -> None:
    """Over many families, each split gets about its share."""
    counts = Counter(
        split_of(str(n), SplitShares(train=0.8, validation=0.15, test=0.05)) for n in range(4000)
    )
    assert counts["train"] / 4000 == pytest.approx(0.8, abs=0.02)
    assert counts["validation"] / 4000 == pytest.approx(0.15, abs=0.02)


def test_wrong_shares() -> None:
    """Shares that do not add up to one are refused with their values."""
    with pytest.raises(ConfigError, match=r"0\.9"):
        SplitShares(train=0.9, validation=0.9, test=0.1)
