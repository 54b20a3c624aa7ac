"""What is measured on verdicts. Functions on arrays of numbers; scikit-learn does the counting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from vlmguard.rewriting.metadata import Calibration
from vlmguard.rewriting.policy import PRESETS, Preset
from vlmguard.training.recipe import CalibrationRecipe

Numbers = np.ndarray
Figures = dict[str, float | None]
"""Metric → value; ``None`` where it is not defined."""
VERDICT_FIGURES = ("auc", "f1", "accuracy", "caught", "over_refusal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a model said about records.

    Attributes:
        margins: log-odds of risky against safe at the verdict's token, one a record.
        risky: what is right, one a record.
    """

    margins: Numbers
    risky: Numbers

    @property
    def risks(self) -> Numbers:
        """The risk 0..1 as serving reads it from the token's probabilities."""
        risks: Numbers = 1 / (1 + np.exp(-np.clip(self.margins, -60, 60)))
        return risks


def verdict_figures(scores: Scores, threshold: float = 0.5) -> Figures:
    """AUC over all thresholds, and counts at one.

    Returns:
        ``auc``, ``f1``, ``accuracy``, ``caught`` (share of risky records flagged) and
        ``over_refusal`` (share of harmless records flagged). ``None`` where a verdict is missing.
    """
    risky = scores.risky.astype(bool)
    flagged = scores.risks >= threshold
    both = bool(risky.any() and not risky.all())
    return {
        "auc": float(roc_auc_score(risky, scores.margins)) if both else None,
        "f1": float(f1_score(risky, flagged, zero_division=0.0)),
        "accuracy": float((flagged == risky).mean()),
        "caught": float(flagged[risky].mean()) if risky.any() else None,
        "over_refusal": float(flagged[~risky].mean()) if not risky.all() else None,
    }


def calibrate(scores: Scores) -> Calibration:
    """Platt scaling, fitted to the margins by logistic regression with a weak prior.

    Raises:
        ValueError: only one verdict is there.
    """
    # C=1 keeps the slope finite where a small validation split is separated perfectly.
    fitted = LogisticRegression(C=1.0).fit(scores.margins.reshape(-1, 1), scores.risky.astype(int))
    return Calibration(slope=float(fitted.coef_[0, 0]), intercept=float(fitted.intercept_[0]))


def thresholds(scores: Scores, shares: CalibrationRecipe) -> dict[Preset, float]:
    """For each preset, the threshold that catches most while enough harmless requests pass.

    Among the thresholds that let at least the preset's share of the harmless records pass: the one
    that catches the most risky records; among equals, the one that lets most pass; and between the
    two neighbouring scores, the middle (in log-odds), which is furthest from both. A risk above
    0.999998 is flagged whatever the preset.
    """
    return {preset: _threshold(scores, getattr(shares, preset)) for preset in PRESETS}


_CERTAIN = 13.5  # log-odds beyond which a difference cannot be seen in a probability


def _threshold(scores: Scores, share: float) -> float:
    risky = scores.risky.astype(bool)
    margins = np.round(np.clip(scores.margins, -_CERTAIN, _CERTAIN), 3)
    values = np.unique(margins)
    between = (values[:-1] + values[1:]) / 2
    cuts = np.clip([values[0] - 0.5, *between, values[-1] + 0.5], -_CERTAIN, _CERTAIN)
    options = [
        (
            float((margins[risky] >= cut).mean()) if risky.any() else 0.0,
            float((margins[~risky] < cut).mean()) if not risky.all() else 1.0,
            float(cut),
        )
        for cut in cuts
    ]
    allowed = [option for option in options if option[1] >= share - 1e-9] or options[-1:]
    _, _, cut = max(allowed)
    return 1 / (1 + math.exp(-cut))
