"""How sure a figure is: 95 % intervals and paired comparisons.

Shares (values that are all 0 or 1) and scores (anything else) are treated apart, since for shares
there are exact ways. Everything is the same again with the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlmguard.errors import MissingExtra
from vlmguard.evals.types import Difference, Estimate

try:
    import numpy as np
    from scipy.stats import binom, binomtest
except ImportError as error:  # pragma: no cover  # depends on what is installed
    raise MissingExtra("intervals of figures", "eval") from error

_DRAWS = 2000
_TAILS = (0.025, 0.975)
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_AT_ONCE = 2_000_000  # numbers held at once, which bounds memory


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean with its 95 % interval.

    The percentile bootstrap (Efron, 1979). A resampled share is binomial, so its percentiles are
    computed and not drawn. Where all answers agree, the bootstrap knows no doubt; a share then gets
    Wilson's score interval (1927), and a score an interval of no width.

    Args:
        values: one an answer; not empty.
        seed: of the resampling of scores.
    """
    found = np.asarray(values, dtype=float)
    size, mean = len(found), float(found.mean())
    if is_share(values):
        low, high = share_interval(int(found.sum()), size)
    elif found.min() == found.max():
        low = high = mean
    else:
        low, high = _percentiles(_resampled(found, seed))
    # Rounding must not put the figure outside its interval.
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=size)


def difference(ours: Sequence[float], none: Sequence[float], *, seed: int = 0) -> Difference:
    """How much the mean of paired answers changed.

    Shares: McNemar's exact test (1947) with Newcombe's hybrid score interval for paired shares
    (1998, method 10). Scores: a bootstrap over pairs, percentiles and two-sided p.

    Args:
        ours: one value a sample; not empty.
        none: those of the same samples without the defence, in the same order.
        seed: of the resampling of scores.
    """
    first, second = np.asarray(ours, dtype=float), np.asarray(none, dtype=float)
    change = first - second
    value = float(change.mean())
    if is_share(ours) and is_share(none):
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        low, high = _newcombe(first, second)
    elif change.min() == change.max():
        low = high = value
        # Of n pairs that all moved one way, a sign test says how odd that is.
        p = min(1.0, 2.0 ** (1 - len(change))) if value else 1.0
    else:
        drawn = _resampled(change, seed)
        low, high = _percentiles(drawn)
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return Difference(
        value=value, low=min(low, value), high=max(high, value), p=float(p), n=len(change)
    )


def is_share(values: Sequence[float]) -> bool:
    """Whether the values are yes and no."""
    return all(value in (0.0, 1.0) for value in values)


def share_interval(hits: int, size: int) -> tuple[float, float]:
    """Low and high of ``hits / size``; see `estimate`."""
    if hits in (0, size):
        return _wilson(hits, size)
    low, high = binom.ppf(_TAILS, size, hits / size) / size
    return float(low), float(high)


def _wilson(hits: int, size: int) -> tuple[float, float]:
    found = binomtest(hits, size).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _newcombe(first: Any, second: Any) -> tuple[float, float]:
    size = len(first)
    p1, p2 = float(first.mean()), float(second.mean())
    low1, high1 = _wilson(int(first.sum()), size)
    low2, high2 = _wilson(int(second.sum()), size)
    spread = math.sqrt(p1 * (1 - p1) * p2 * (1 - p2))
    both = float((first * second).mean()) - p1 * p2
    # Newcombe's continuity correction of a positive correlation.
    both = max(both - 1 / (2 * size), 0.0) if both > 0 else both
    phi = both / spread if spread else 0.0
    down = _hypotenuse(p1 - low1, high2 - p2, phi)
    up = _hypotenuse(high1 - p1, p2 - low2, phi)
    return max(p1 - p2 - down, -1.0), min(p1 - p2 + up, 1.0)


def _hypotenuse(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def _resampled(values: Any, seed: int) -> Any:
    """Means of resamples, shape (draws,).

    Judges give few different grades, so how often each is drawn is drawn, not which answer.
    """
    levels, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, min(_DRAWS, _AT_ONCE // len(levels)))
    means = [
        rng.multinomial(len(values), counts / len(values), size=min(chunk, _DRAWS - start)) @ levels
        for start in range(0, _DRAWS, chunk)
    ]
    return np.concatenate(means) / len(values)


def _percentiles(drawn: Any) -> tuple[float, float]:
    low, high = np.quantile(drawn, _TAILS)
    return float(low), float(high)
