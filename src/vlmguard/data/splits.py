"""Which split a record belongs to: decided by its family's name alone, the same on every machine.

A family's records share words or pictures, so one of them in training and another in the test set
would be a leak. And since nothing but the name decides, adding records never moves old ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vlmguard.data.records import Split
from vlmguard.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitShares:
    """The share 0..1 of families that each split is to have.

    Raises:
        ConfigError: a share is negative, or they do not add up to 1.
    """

    train: float = 0.9
    validation: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ConfigError(
                f"shares of the splits must be 0 or more and add up to 1, not {shares}"
            )


DEFAULT_SHARES = SplitShares()


def split_of(family: str, shares: SplitShares = DEFAULT_SHARES) -> Split:
    """The split of a family: its name's SHA-256 as a number in 0..1, cut at the shares."""
    digest = hashlib.sha256(family.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < shares.train:
        return "train"
    return "validation" if place < shares.train + shares.validation else "test"
