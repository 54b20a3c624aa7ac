"""How far judges agree beyond chance: Cohen's and Fleiss' kappa, with intervals.

scikit-learn has Cohen's kappa for one table; here it is computed for thousands of resampled tables
at once, and Fleiss' in the same way. The tests compare with scikit-learn's and with a worked
example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from vlmguard.errors import MissingExtra
from vlmguard.evals.types import Estimate

try:
    import numpy as np
except ImportError as error:  # pragma: no cover  # depends on what is installed
    raise MissingExtra("agreement of judges", "eval") from error

_DRAWS = 2000


def kappa(votes: Sequence[Sequence[Hashable]], *, seed: int = 0) -> Estimate | None:
    """Agreement of two or more raters, with a percentile bootstrap over items.

    Cohen's kappa (1960) for two raters, Fleiss' (1971) for more.

    Args:
        votes: one entry an item: the label of each rater, as many for every item, at least two.
        seed: of the resampling.

    Returns:
        ``None`` without items, or where every rater gave one and the same label throughout: chance
        alone would then agree as well, and kappa is undefined.
    """
    if not votes:
        return None
    if len({len(item) for item in votes}) != 1 or len(votes[0]) < 2:
        raise ValueError("every item needs the votes of the same two or more raters")
    labels = {label: number for number, label in enumerate(_distinct(votes))}
    patterns = Counter(tuple(labels[label] for label in item) for item in votes)
    kinds, counts = list(patterns), np.array(list(patterns.values()))
    statistic = _cohen if len(votes[0]) == 2 else _fleiss
    value = float(statistic(kinds, counts[None, :], len(labels))[0])
    if np.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(votes), counts / len(votes), size=_DRAWS)
    found = statistic(kinds, drawn, len(labels))
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, (0.025, 0.975)) if len(found) else (value, value)
    return Estimate(
        value=value, low=min(float(low), value), high=max(float(high), value), n=len(votes)
    )


def _distinct(votes: Sequence[Sequence[Hashable]]) -> list[Hashable]:
    return list(dict.fromkeys(label for item in votes for label in item))


def _cohen(kinds: list[tuple[int, ...]], counts: Any, labels: int) -> Any:
    """Kappa of each row of ``counts`` (draws, patterns)."""
    first, second = (np.eye(labels)[[kind[rater] for kind in kinds]] for rater in (0, 1))
    size = counts.sum(axis=1)
    same = np.array([kind[0] == kind[1] for kind in kinds])
    observed = counts[:, same].sum(axis=1) / size
    expected = ((counts @ first) * (counts @ second)).sum(axis=1) / size**2
    return _beyond_chance(observed, expected)


def _fleiss(kinds: list[tuple[int, ...]], counts: Any, labels: int) -> Any:
    raters = len(kinds[0])
    given = np.array([[kind.count(label) for label in range(labels)] for kind in kinds])
    size = counts.sum(axis=1)
    within = (given * (given - 1)).sum(axis=1) / (raters * (raters - 1))
    observed = counts @ within / size
    shares = counts @ given / (size[:, None] * raters)
    return _beyond_chance(observed, (shares**2).sum(axis=1))


def _beyond_chance(observed: Any, expected: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan)
