"""A recipe: everything that decides what a training run yields, in one YAML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlmguard.errors import ConfigError
from vlmguard.rewriting.format import Layout

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(_Section):
    """What is trained on.

    Attributes:
        paths: whatever `vlmguard.data.read_records` reads; relative to the recipe's folder.
        max_length: tokens of prompt and completion together, pictures included.
        too_long: what to do about longer records; they are listed either way, never cut.
        balance: ``none`` takes the data as it is; ``oversample`` repeats the rarer verdict until
            both are equally frequent.
        variants: so many more surfaces of each training record (see `vlmguard.data.surface`),
            trained on for their verdict alone.
        limit: at most so many records of each split, for trials.
        detectors: for blind models and records with pictures but no evidence: which to run.
        workers: processes that read and scale pictures ahead of the model.
    """

    paths: Annotated[tuple[Path, ...], Field(min_length=1)]
    max_length: Count = 2048
    too_long: Literal["drop", "fail"] = "drop"
    balance: Literal["none", "oversample"] = "none"
    variants: Annotated[int, Field(ge=0)] = 0
    limit: Count | None = None
    detectors: tuple[str, ...] | None = None
    workers: Annotated[int, Field(ge=0)] = 0


class LoraRecipe(_Section):
    """The low-rank adapter.

    Attributes:
        r: rank.
        alpha: scale; the adapter is applied times alpha/r.
        dropout: on its input.
        targets: names of the linear layers of the language model that get one.
        last_layers: only in so many blocks of it, the last ones. Training is faster, since nothing
            is carried back through the blocks before them.
        start_from: folder of a PEFT adapter of the same shape to go on from, in place of a new
            one; relative to the current folder, like ``output``.
    """

    r: Count = 16
    alpha: Count = 32
    dropout: Share = 0.05
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    last_layers: Count | None = None
    start_from: Path | None = None


class LossRecipe(_Section):
    """How much each token counts.

    Attributes:
        verdict_weight: of the verdict's token; a completion has about a hundred tokens, and this
            one decides.
        prefix_weight: of the fixed words before the verdict in a verdict-first answer. 0 when the
            engine is to continue them or is held by a grammar; more for engines that do neither.
    """

    verdict_weight: Annotated[float, Field(gt=0)] = 10.0
    prefix_weight: Annotated[float, Field(ge=0)] = 0.0


class OptimizerRecipe(_Section):
    """How the weights move.

    Attributes:
        epochs: passes over the data.
        max_steps: stop after so many steps of the optimizer, whatever ``epochs`` says.
        batch_size: records a device and forward pass.
        accumulation: forward passes a step.
        learning_rate: at its peak.
        schedule: of the learning rate after the warm-up.
        warmup: share of the steps.
        weight_decay, grad_clip: as AdamW and its users understand them.
        precision: ``auto`` is bf16 autocast where the hardware has it, else fp32.
        gradient_checkpointing: trades a third more time for much less memory.
        seed: of data order, dropout and adapter.
    """

    epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: Count | None = None
    batch_size: Count = 8
    accumulation: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0


class EvaluationRecipe(_Section):
    """What is measured on the validation split.

    Attributes:
        batch_size: records a forward pass.
        metric: decides which checkpoint is the best.
        save_steps: steps between checkpoints, so that a killed run loses little.
        generate: so many risky validation records are answered in full at the end, for parse rate
            and similarity of rewrites.
        report_to: ``trackio``, ``wandb``, ``mlflow`` or ``tensorboard``, when they are installed.
    """

    batch_size: Count = 16
    metric: Literal["auc", "f1", "loss"] = "auc"
    save_steps: Count = 100
    generate: Annotated[int, Field(ge=0)] = 0
    report_to: tuple[str, ...] = ()


class CalibrationRecipe(_Section):
    """Which share of harmless validation requests each preset must let pass, at the least."""

    strict: Share = 0.90
    balanced: Share = 0.95
    permissive: Share = 0.99

    @model_validator(mode="after")
    def _rising(self) -> CalibrationRecipe:
        if not self.strict <= self.balanced <= self.permissive:
            raise ValueError("the shares must rise from strict to permissive")
        return self


class ExportRecipe(_Section):
    """What is written beside the PEFT adapter (or the fully tuned checkpoint).

    Attributes:
        gguf: the adapter for llama.cpp, in f16.
        merged: base and adapter as one plain checkpoint.
    """

    gguf: bool = False
    merged: bool = False


class Recipe(_Section):
    """The whole recipe.

    Attributes:
        name: of the adapter.
        model: a known model (``smollm2``), a GGUF file, a checkpoint folder or ``org/model``.
        revision: branch, tag or commit of a Hub model.
        trust_remote_code: run Python that comes with the model.
        max_pixels: bigger pictures are scaled down, as with ``hf:…?max_pixels=``.
        tuning: ``lora``; ``qlora``, on a base quantized to 4 bits (CUDA, bitsandbytes); ``full``.
        layout: what the model learns to write.
        prompt: file of the system prompt in ``vlmguard.rewriting``.
        output: folder of the run; relative to the current folder.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    max_pixels: Count | None = None
    tuning: Literal["lora", "qlora", "full"] = "lora"
    layout: Layout = Layout.VERDICT_FIRST
    prompt: str = "trained.md"
    output: Path
    data: DataRecipe
    lora: LoraRecipe = LoraRecipe()
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    calibration: CalibrationRecipe = CalibrationRecipe()
    export: ExportRecipe = ExportRecipe()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.tuning == "full" and self.export.gguf:
            raise ValueError("export.gguf is an adapter's format; full tuning has no adapter")
        if self.tuning == "full" and self.export.merged:
            raise ValueError("export.merged goes with adapters; full tuning is one checkpoint")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML. Data paths in it are relative to its folder.
        overrides: ``key=value`` with dots for sections, e.g. ``optimizer.epochs=1``; the value is
            YAML. Data paths given so are relative to the current folder.

    Raises:
        ConfigError: not there, not YAML, an unknown key or a wrong value; names it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} is not a mapping of settings")
    _anchor_paths(content, path.parent)
    for override in overrides:
        _apply(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"recipe {path}: {where}: {problem}") from None


def _anchor_paths(content: dict[str, Any], folder: Path) -> None:
    data = content.get("data")
    paths = data.get("paths") if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(paths, list):
        data["paths"] = [os.path.normpath(folder / str(path)) for path in paths]


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not of the form key=value, e.g. optimizer.epochs=1")
    *sections, last = key.split(".")
    target = content
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {section} is a value, not a section")
        target = inner
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not YAML: {error}") from None
