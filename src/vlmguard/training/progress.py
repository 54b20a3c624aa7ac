"""What happens while a run trains: measuring, keeping the best, drawing curves."""

# ruff: noqa: ARG002  (the trainer decides what its callbacks are given)
from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmguard.errors import ConfigError
from vlmguard.models.notices import say
from vlmguard.training.figures import VERDICT_FIGURES, Figures, Scores
from vlmguard.training.trainer import VerdictTrainer

BEST_FILE = "best.json"
_SHOWN = ("loss", *VERDICT_FIGURES)
_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm")
History = Sequence[Mapping[str, Any]]


class EvaluateEachEpoch(TrainerCallback):
    """Measures the validation split after every epoch, and when training ends within one.

    The trainer itself can do so only where it writes a checkpoint, and an epoch on a CPU is too
    long to be lost. The checkpoint at the end of an epoch is written again after the evaluation,
    so that it knows the figures.

    Args:
        trainer: that measures.
    """

    def __init__(self, trainer: VerdictTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure what a killed run had trained and not measured."""
        measured = {row["step"] for row in state.log_history if "eval_loss" in row}
        at_end = state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
        if state.global_step > 0 and at_end and state.global_step not in measured:
            self._trainer.evaluate()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask the trainer for it."""
        control.should_evaluate = True
        control.should_save = True


class Best(TrainerCallback):
    """Keeps the weights with the best figure, with the scores they gave.

    Everything is on disk, so that a resumed run knows what the killed one had reached.

    Args:
        trainer: whose weights.
        folder: where to.
        metric: ``loss``, ``auc`` or ``f1``.
    """

    def __init__(self, trainer: VerdictTrainer, folder: Path, *, metric: str) -> None:
        self._trainer = trainer
        self._folder = folder
        self._metric = metric

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Save, when better than all before."""
        figures = _figures_in(metrics or {})
        if figures.get(self._metric) is None or not self._are_better(figures):
            return
        scores = self._trainer.scores
        assert scores is not None
        self._trainer.save_model(str(self._folder))  # every process takes part in it
        if not state.is_world_process_zero:
            return
        note = {
            "metric": self._metric,
            "step": state.global_step,
            "figures": figures,
            "margins": scores.margins.tolist(),
            "risky": scores.risky.tolist(),
        }
        part = self._folder / f"{BEST_FILE}.part"
        part.write_text(json.dumps(note), encoding="utf-8")
        part.replace(self._folder / BEST_FILE)

    def read(self) -> tuple[Scores, Figures]:
        """What the best weights scored on the validation split, and their figures.

        Raises:
            ConfigError: nothing was ever measured.
        """
        note = self._note()
        if note is None:
            raise ConfigError("training ended before anything was measured")
        scores = Scores(margins=np.array(note["margins"]), risky=np.array(note["risky"]))
        return scores, note["figures"]

    def load(self) -> None:
        """Put the best weights into the model."""
        self._trainer._load_from_checkpoint(str(self._folder))  # noqa: SLF001  (there is no other)

    def _are_better(self, figures: Figures) -> bool:
        note = self._note()
        return note is None or self._rank(figures) > self._rank(note["figures"])

    def _rank(self, figures: Figures) -> tuple[float, float]:
        """By the metric in hundredths, then by the loss: higher is better.

        A validation split of a hundred records cannot tell thousandths of an AUC apart, and where
        verdicts are equally good, the lower loss has learned more about reasons and rewrites.
        """
        loss = -(figures.get("loss") or 0.0)
        value = figures[self._metric]
        assert value is not None
        return (loss if self._metric == "loss" else round(value, 2), loss)

    def _note(self) -> Any:
        try:
            return json.loads((self._folder / BEST_FILE).read_bytes())
        except FileNotFoundError:
            return None


class Curves(TrainerCallback):
    """Tells how it goes, keeps ``curves.csv``, and at the end draws ``curves.png``.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Tell a person, and write the whole history anew."""
        if not state.is_world_process_zero or not logs:
            return
        figures = _figures_in(logs)
        if figures:
            shown = (f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
            self._tell(f"epoch {state.epoch or 0:.2f}", ", ".join(shown))
        elif "loss" in logs:
            self._tell(f"step {state.global_step}/{state.max_steps}", f"loss {logs['loss']:.3f}")
        write_curves(state.log_history, self._folder / "curves.csv")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Draw."""
        if state.is_world_process_zero:
            draw_curves(state.log_history, self._folder / "curves.png")

    def _tell(self, where: str, what: str) -> None:
        minutes, seconds = divmod(round(time.perf_counter() - self._start), 60)
        say(f"{minutes:3d}:{seconds:02d}  {where}: {what}")


def _figures_in(logs: Mapping[str, Any]) -> Figures:
    """Those of the validation split, without the trainer's prefix and its own clock."""
    found = {name: logs.get(f"eval_{name}") for name in _SHOWN}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, float | int) and math.isfinite(value)
    }


def write_curves(history: History, file: Path) -> None:
    """The trainer's log as a table: one row a logged step or evaluation."""
    columns = [*_COLUMNS, *(f"eval_{name}" for name in _SHOWN)]
    part = file.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(dict(row) for row in history if {"loss", "eval_loss"} & row.keys())
    part.replace(file)


def draw_curves(history: History, file: Path) -> None:
    """The loss on the left, the verdicts on the right."""
    # pyplot would look for a display and keep global state.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, history, "loss", "training")
    _draw(left, history, "eval_loss", "validation")
    for name in VERDICT_FIGURES:
        _draw(right, history, f"eval_{name}", name.replace("_", "-"))
    left.set(xlabel="step", ylabel="loss a weighted token", title="Loss")
    right.set(xlabel="step", ylim=(0, 1.02), title="Verdicts on the validation split")
    figure.savefig(file, dpi=120)


def _draw(axes: Any, history: History, name: str, label: str) -> None:
    points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=label, marker="." if len(points) < 30 else "")
        axes.legend()
