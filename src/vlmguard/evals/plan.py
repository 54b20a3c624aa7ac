"""What a run is to do: the options of ``vlmguard eval``, on the command line or in a YAML file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vlmguard.engines import Sampling
from vlmguard.errors import ConfigError

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]

DEFAULT_POLICY = "balanced"
"""What ``guard`` stands for, so that its spec need not say it."""


class EvalPlan(BaseModel):
    """Targets × benchmarks × defences, judged by each judge.

    Attributes:
        benchmarks: variants, e.g. ``"figstep"``.
        targets: engine specs of the models that answer.
        defences: defence specs.
        compare_to: the one of them that paired differences are to.
        judges: judge specs.
        data: folder of the benchmarks' data; ``None`` for those that come from elsewhere.
        out: folder of the run.
        limit: only the first samples of each benchmark.
        concurrency: samples at once.
        repeats: answers to each sample, of which the majority counts; odd. SIUO takes three.
        seed: of samplers and of the report's bootstrap.
        policy: the guard's rules, where its spec names none: a preset or a YAML file.
        max_tokens, temperature: of the targets' answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: Names
    targets: Names = ("smollm2",)
    defences: Names = ("none", "guard")
    compare_to: str = "none"
    judges: Names = ("refusal",)
    data: Path | None = None
    out: Path = Path("runs/eval")
    limit: Count | None = None
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 8
    repeats: Count = 1
    seed: int = 0
    policy: str = DEFAULT_POLICY
    max_tokens: Count = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0

    @property
    def sampling(self) -> Sampling:
        """How targets generate."""
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed)

    def command(self) -> str:
        """The command line that repeats the run."""
        plain = EvalPlan(benchmarks=self.benchmarks)
        words = ["vlmguard", "eval", ",".join(self.benchmarks)]
        for field, option in _OPTIONS.items():
            value = getattr(self, field)
            if value != getattr(plain, field) or field in _ALWAYS:
                told = ",".join(value) if isinstance(value, tuple) else str(value)
                words += [option, told]
        return shlex.join(words)

    @field_validator("benchmarks", "targets", "defences", "judges", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """``a,b`` stands for two; a name given twice counts once."""
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            return given
        names = [item.strip() if isinstance(item, str) else item for item in given]
        return list(dict.fromkeys(name for name in names if name != ""))

    @model_validator(mode="after")
    def _decidable(self) -> EvalPlan:
        """Repeats that are told apart, and of which one outcome has more than half."""
        if self.repeats % 2 == 0:
            raise ValueError(
                f"repeats: {self.repeats} answers may be tied; take an odd number, e.g. 3"
            )
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError(
                f"repeats: {self.repeats} answers at temperature 0 would be one answer; "
                "set temperature too, e.g. to 1"
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> EvalPlan:
        """Without ``none`` nothing is compared; another one was named, so it must be there."""
        if self.compare_to not in {"none", *self.defences}:
            raise ValueError(
                f"compare_to: {self.compare_to!r} is none of the defences: "
                f"{', '.join(self.defences)}"
            )
        return self

    @field_validator("judges", mode="after")
    @classmethod
    def _joined(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        """A majority's judges are joined as on the command line, where a comma divides judges."""
        return tuple(
            name.replace(",", "+") if name.startswith("majority:") and "+" not in name else name
            for name in judges
        )


_OPTIONS = {
    "targets": "--target",
    "defences": "--defence",
    "compare_to": "--compare-to",
    "judges": "--judge",
    "data": "--data",
    "limit": "--limit",
    "concurrency": "--concurrency",
    "repeats": "--repeats",
    "seed": "--seed",
    "policy": "--policy",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "out": "--out",
}
_ALWAYS = frozenset({"targets", "defences", "judges", "out"})


def load_plan(path: Path | None, given: Mapping[str, Any]) -> EvalPlan:
    """The plan of a YAML file (or none), with what the command line gives in place of its values.

    Args:
        path: the file; its ``data`` and ``policy`` paths are relative to the current folder.
        given: option → value; ``None`` where the command line says nothing.

    Raises:
        ConfigError: not there, not YAML, an unknown key or a wrong value; names it.
    """
    content = {} if path is None else _read(path)
    content |= {key: value for key, value in given.items() if value is not None}
    try:
        return EvalPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        source = "" if path is None else f"{path}: "
        told = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # about several settings, which the message names
            raise ConfigError(f"{source}{told}") from None
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}{where}: {told} (given: {first['input']!r})") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} is not a mapping of settings")
    return content
