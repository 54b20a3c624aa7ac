"""``vlmguard.json``: what a trained rewriter says about itself, and the check before it is used.

An adapter works only with what it was trained on: the base, the layout and the very words of the
system prompt. A mismatch would not fail, it would judge badly; so it is an error that says what
differs. No torch here.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlmguard.errors import ConfigError
from vlmguard.rewriting.format import Layout
from vlmguard.rewriting.policy import PRESETS, Preset

METADATA_FILE = "vlmguard.json"
SCHEMA_VERSION: Literal[1] = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptFacts(_Model):
    """The system prompt that the adapter was trained under.

    Attributes:
        package, file: where `vlmguard.prompts.load_prompt` finds it.
        hash: first 12 hex digits of its SHA-256.
    """

    package: str = "vlmguard.rewriting"
    file: str
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class BaseFacts(_Model):
    """The model that was trained.

    Attributes:
        name: as the recipe names it: ``smollm2``, a file, a folder or ``org/model``.
        architecture: ``model_type`` of its configuration, e.g. ``"llama"``.
        sha256: of its GGUF file; ``None`` for checkpoints of many files.
        revision: commit of a Hub model, where it is known.
        sighted: it was trained to see the pictures; otherwise it read evidence about them.
    """

    name: str
    architecture: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    revision: str | None = None
    sighted: bool = False


class Calibration(_Model):
    """From the risk that the model reports to the probability that a request is risky.

    Platt scaling: ``p = sigmoid(slope * logit(risk) + intercept)``; a slope of 1/T and an intercept
    of 0 would be temperature scaling.
    """

    method: Literal["platt"] = "platt"
    slope: float
    intercept: float

    def apply(self, risk: float) -> float:
        """The calibrated probability 0..1 for a risk 0..1 as the model reports it."""
        clipped = min(max(risk, 1e-9), 1 - 1e-9)
        return 1 / (
            1 + math.exp(-(self.slope * math.log(clipped / (1 - clipped)) + self.intercept))
        )


class DataFacts(_Model):
    """What it was trained on.

    Attributes:
        sources: names of the data sets, and how many records of each were read.
        sha256: over ids and contents of all records, in order.
        records: split → number of records used.
        variants: other surfaces of training records, trained on for their verdict alone.
        dropped: why → number of records left out.
    """

    sources: dict[str, int]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    records: dict[str, int]
    variants: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)


class AdapterMetadata(_Model):
    """The contents of ``vlmguard.json``.

    Attributes:
        schema_version: of this file.
        name: of the adapter.
        layout: what it writes.
        prompt: what it reads first.
        base: what it belongs to.
        thresholds: calibrated on the validation split, for the risk as the model reports it.
        calibration: of the same, for people who want a probability.
        categories: those it was trained to name.
        files: kind (``peft``, ``gguf``, ``merged``) → file beside this one.
        created: ISO 8601, UTC.
        versions: package → version that trained it.
        seed: of the run.
        data: what it was trained on.
        figures: split → metric → value.
        recipe: the whole recipe.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    layout: Layout
    prompt: PromptFacts
    base: BaseFacts
    thresholds: dict[Preset, Annotated[float, Field(gt=0, lt=1)]]
    calibration: Calibration | None = None
    categories: tuple[str, ...]
    files: dict[str, str] = Field(default_factory=dict)
    created: str
    versions: dict[str, str]
    seed: int
    data: DataFacts
    figures: dict[str, dict[str, float | None]]
    recipe: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Tells one training from another, also when its files replace the other's."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @model_validator(mode="after")
    def _ordered(self) -> AdapterMetadata:
        if missing := [name for name in PRESETS if name not in self.thresholds]:
            raise ValueError(f"thresholds are missing for {', '.join(missing)}")
        strict, balanced, permissive = (self.thresholds[name] for name in PRESETS)
        if not strict <= balanced <= permissive:
            raise ValueError(
                f"thresholds must not fall from strict to permissive: "
                f"{strict:.3g}, {balanced:.3g}, {permissive:.3g}"
            )
        return self


def load_metadata(path: Path) -> AdapterMetadata:
    """Read what lies beside an adapter.

    Args:
        path: the adapter (a ``.gguf`` file or a folder), its folder, or ``vlmguard.json`` itself.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    file = _beside(path)
    try:
        return AdapterMetadata.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path} has no {METADATA_FILE} beside it ({error.strerror}), so nobody knows what the "
            "adapter was trained for; keep the files of an adapter together"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{file} is damaged: {where}: {first['msg']}") from None


def check(
    metadata: AdapterMetadata,
    *,
    layout: Layout | None = None,
    prompt_hash: str | None = None,
    base_sha256: str | None = None,
) -> None:
    """Compare what an adapter was trained with to what it is about to be used with.

    Args:
        metadata: of the adapter.
        layout: that the guard is to read; ``None`` where it does not matter.
        prompt_hash: of the guard's system prompt; ``None`` where it does not matter.
        base_sha256: of the model's GGUF file; ``None`` where it is not known.

    Raises:
        ConfigError: says everything that differs.
    """
    trained = {
        "layout": metadata.layout.value,
        "prompt": metadata.prompt.hash,
        "base": metadata.base.sha256,
    }
    used = {
        "layout": None if layout is None else layout.value,
        "prompt": prompt_hash,
        "base": base_sha256,
    }
    differing = [
        f"the {what} is {_short(value)}, trained with {_short(trained[what])}"
        for what, value in used.items()
        if value is not None and trained[what] is not None and value != trained[what]
    ]
    if differing:
        raise ConfigError(
            f"the adapter {metadata.name} does not fit: {'; '.join(differing)}. Use the base, "
            "layout and prompt that it was trained with, or train it anew"
        )


def _short(value: str | None) -> str:
    return f"{value[:12]}…" if value is not None and len(value) > 24 else str(value)


def _beside(path: Path) -> Path:
    if path.name == METADATA_FILE:
        return path
    return (path if path.is_dir() else path.parent) / METADATA_FILE
