"""What happens while a run trains: measuring, keeping the best, drawing curves."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmguard.errors import ConfigError
from vlmguard.models.notices import say
from vlmguard.training.figures import Scores
from vlmguard.training.trainer import VerdictTrainer

Figures = dict[str, float | None]


class EvaluateEachEpoch(TrainerCallback):  # type: ignore[misc]
    """Measures the validation split after every epoch, and when training ends within one."""

    def __init__(self) -> None:
        self._measured_at = -1

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Ask the trainer for it."""
        if state.global_step != self._measured_at:
            self._measured_at = state.global_step
            control.should_evaluate = True


class Best(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights with the best figure, with the scores they gave.

    Everything is on disk, so that a resumed run knows what the killed one had reached.

    Args:
        trainer: whose weights.
        folder: where to.
        metric: ``loss`` is best when low, all others when high.
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
        figures = _named(metrics or {})
        reached = figures.get(self._metric)
        if reached is None or not self._is_better(reached):
            return
        scores = self._trainer.scores
        assert scores is not None
        self._trainer.save_model(str(self._folder))  # collective: every process takes part
        if not state.is_world_process_zero:
            return
        note = {
            "metric": self._metric,
            "step": state.global_step,
            "figures": figures,
            "margins": scores.margins.tolist(),
            "risky": scores.risky.tolist(),
        }
        part = self._folder / "best.json.part"
        part.write_text(json.dumps(note), encoding="utf-8")
        part.replace(self._folder / "best.json")

    def load(self) -> tuple[Scores, Figures]:
        """Put the best weights into the model; what they scored.

        Raises:
            ConfigError: nothing was ever measured.
        """
        note = self._note()
        if note is None:
            raise ConfigError("training ended before anything was measured")
        self._trainer._load_from_checkpoint(str(self._folder))  # noqa: SLF001  # also sharded ones
        scores = Scores(margins=np.array(note["margins"]), risky=np.array(note["risky"]))
        return scores, note["figures"]

    def _is_better(self, reached: float) -> bool:
        note = self._note()
        if note is None:
            return True
        before = float(note["figures"][self._metric])
        return reached < before if self._metric == "loss" else reached > before

    def _note(self) -> Any:
        try:
            return json.loads((self._folder / "best.json").read_bytes())
        except FileNotFoundError:
            return None


class Curves(TrainerCallback):  # type: ignore[misc]
    """Writes what is logged to ``curves.csv``, and at the end draws ``curves.png``.

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
        spent = time.perf_counter() - self._start
        if "eval_loss" in logs:
            told = {**_named(logs)}
            shown = ", ".join(
                f"{key} {value:.3f}" for key, value in told.items() if value is not None
            )
            say(f"epoch {state.epoch or 0:.2f}: {shown} ({spent:.0f} s)")
        elif "loss" in logs:
            say(
                f"step {state.global_step}/{state.max_steps}: loss {logs['loss']:.4f} ({spent:.0f} s)"
            )
        write_curves(state.log_history, self._folder / "curves.csv")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Draw."""
        if state.is_world_process_zero:
            draw_curves(state.log_history, self._folder / "curves.png")


_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm")
_FIGURES = ("loss", "auc", "f1", "accuracy", "caught", "over_refusal")


def _named(logs: dict[str, Any]) -> Figures:
    """The figures of the validation split, without the trainer's prefix and its own clock."""
    return {
        name: logs[f"eval_{name}"]
        for name in _FIGURES
        if isinstance(logs.get(f"eval_{name}"), float | int) and math.isfinite(logs[f"eval_{name}"])
    }


def write_curves(history: list[dict[str, Any]], file: Path) -> None:
    """The trainer's log as a table: one row a logged step."""
    columns = [*_COLUMNS, *(f"eval_{name}" for name in _FIGURES)]
    part = file.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(row for row in history if {"loss", "eval_loss"} & row.keys())
    part.replace(file)


def draw_curves(history: list[dict[str, Any]], file: Path) -> None:
    """Loss on the left, verdicts on the right."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (no pyplot: no display, no global state)

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(row["step"], row[name]) for row in history if name in row]
        left.plot(
            *zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None
        ) if points else None
    for name in _FIGURES[1:]:
        points = [
            (row["step"], row[f"eval_{name}"])
            for row in history
            if row.get(f"eval_{name}") is not None
        ]
        if points:
            right.plot(*zip(*points, strict=True), label=name.replace("_", "-"), marker="o")
    left.set(xlabel="step", ylabel="loss a weighted token", title="Loss")
    right.set(xlabel="step", ylim=(0, 1.02), title="Verdicts on the validation split")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(file, dpi=120)
