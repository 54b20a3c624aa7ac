"""Figures, calibration and thresholds on scores that are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmguard.rewriting.policy import PRESETS
from vlmguard.training.figures import Scores, calibrate, thresholds, verdict_figures
from vlmguard.training.progress import draw_curves, write_curves
from vlmguard.training.recipe import CalibrationRecipe

SHARES = CalibrationRecipe()


def scores(safe: list[float], risky: list[float]) -> Scores:
    """Margins of harmless records, then of risky ones."""
    return Scores(
        margins=np.array([*safe, *risky]),
        risky=np.array([0] * len(safe) + [1] * len(risky)),
    )


def test_figures_count_what_their_names_say() -> None:
    """One harmless record of four is flagged, one risky of two is missed."""
    found = verdict_figures(scores([-3, -2, -1, 1], [-0.5, 2]))
    assert found["over_refusal"] == 0.25
    assert found["caught"] == 0.5
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(0.5)
    assert found["auc"] == pytest.approx(7 / 8)


def test_figures_without_one_of_the_verdicts_are_left_open() -> None:
    """What cannot be known is None, not zero."""
    found = verdict_figures(scores([-1, 1], []))
    assert found["auc"] is None
    assert found["caught"] is None
    assert found["over_refusal"] == 0.5


def test_separated_verdicts_get_one_threshold_in_the_middle_of_the_gap() -> None:
    """There, no preset has anything to trade."""
    chosen = thresholds(scores([-3.0, -1.0], [2.0, 4.0]), SHARES)
    middle = 1 / (1 + math.exp(-0.5))
    assert list(chosen.values()) == pytest.approx([middle] * 3)


def test_presets_trade_harmless_requests_for_risky_ones() -> None:
    """With a hundred harmless records, 90, 95 and 99 of them pass, and as many risky as can be."""
    safe = [float(at) for at in range(100)]
    risky = [at + 0.5 for at in range(80, 100)]
    found = scores(safe, risky)
    found = Scores(margins=(found.margins - 90) / 10, risky=found.risky)
    chosen = thresholds(found, SHARES)
    at = {name: verdict_figures(found, value) for name, value in chosen.items()}
    assert [round(1 - (at[name]["over_refusal"] or 0), 2) for name in PRESETS] == [0.9, 0.95, 0.99]
    assert [round(at[name]["caught"] or 0, 2) for name in PRESETS] == [0.55, 0.3, 0.1]


margins = st.lists(st.floats(-20, 20), min_size=1, max_size=12)


@given(margins, margins)
def test_thresholds_always_keep_their_promise(safe: list[float], risky: list[float]) -> None:
    """They rise with the presets, lie within 0..1, and let at least the asked share pass."""
    found = scores(safe, risky)
    chosen = thresholds(found, SHARES)
    assert chosen["strict"] <= chosen["balanced"] <= chosen["permissive"]
    for preset, threshold in chosen.items():
        assert 0 < threshold < 1
        if max(safe) < 13.4:  # beyond, certainty is taken for a risk whatever the preset
            flagged = verdict_figures(found, threshold)["over_refusal"]
            assert flagged is not None
            assert 1 - flagged >= getattr(SHARES, preset) - 1e-9


def test_calibration_says_how_often_such_a_risk_is_one() -> None:
    """Over-confident margins are drawn towards the rates at which they are right."""
    chance = np.random.default_rng(0)
    truth = chance.random(4000) < 0.5
    honest = np.where(truth, 1.0, -1.0) + chance.normal(0, 1.0, 4000)  # log-odds are 2x
    found = calibrate(Scores(margins=honest * 6, risky=truth))
    assert found.slope == pytest.approx(1 / 3, abs=0.05)
    assert found.apply(1 / (1 + math.exp(-6))) == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)
    assert found.apply(1.0) < 1
    assert found.apply(0.0) > 0


def test_curves_of_a_run_that_measured_nothing_can_be_drawn(tmp_path: Path) -> None:
    """A run of a step or two must not fail at the end for want of points."""
    for history in (
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "eval_loss": 2.0, "eval_auc": None}],
    ):
        write_curves(history, tmp_path / "curves.csv")
        draw_curves(history, tmp_path / "curves.png")
        assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + len(history)
