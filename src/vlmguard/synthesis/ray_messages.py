"""What the processes of a Ray run tell each other. Nothing here needs Ray."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlmguard.errors import VLMGuardError
from vlmguard.perception import Perceiver
from vlmguard.synthesis.calls import Stopped
from vlmguard.synthesis.limits import Limits
from vlmguard.synthesis.outcomes import Outcome
from vlmguard.synthesis.pipeline import Recipe
from vlmguard.synthesis.players import Player, open_players
from vlmguard.synthesis.rows import Call
from vlmguard.synthesis.seeds import Seed
from vlmguard.types import Completion, Image


@dataclass(frozen=True, slots=True, kw_only=True)
class RayModels:
    """The models of a run, as every worker opens them for itself.

    Attributes:
        specs: role (``reasoner``, ``target``, ``judge``) → spec.
        limits: for hosted models.
        detectors: eyes of models that cannot see; ``None`` gives them none.
    """

    specs: Mapping[str, str]
    limits: Limits = Limits()  # noqa: RUF009  # frozen
    detectors: tuple[str, ...] | None = None

    def open(self) -> dict[str, Player]:
        """Open them; raises as `open_players`."""
        return open_players(
            self.specs,
            limits=self.limits,
            perceiver=None if self.detectors is None else Perceiver(self.detectors),
        )

    def shared_by(self, workers: int) -> RayModels:
        """The same for each of several workers: together they keep within the limits."""

        def share(limit: float | None) -> float | None:
            return None if limit is None else limit / workers

        limits = replace(
            self.limits,
            requests_per_minute=share(self.limits.requests_per_minute),
            tokens_per_minute=share(self.limits.tokens_per_minute),
        )
        return replace(self, limits=limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the workers are told, once.

    Attributes:
        models: to open, with the limits of one worker.
        recipe: how seeds are turned into records.
        key: `recipe_key` of the run; the workers must come to the same.
        workers: how many.
        at_once: seeds that one worker has in work.
        bundle: seeds that travel together, at most.
        gpus: of each worker.
    """

    models: RayModels
    recipe: Recipe
    key: str
    workers: int
    at_once: int
    bundle: int
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A seed for a worker, with its pictures loaded.

    Attributes:
        number: by which its outcome is known.
    """

    number: int
    seed: Seed
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An error on its way to another process. Not the exception: some cannot be pickled."""

    kind: type[Exception]
    message: str
    state: dict[str, Any]

    @classmethod
    def by(cls, error: Exception) -> Raised:
        """What there is to tell about an error; one that is a mistake comes with its place."""
        if isinstance(error, VLMGuardError | Stopped):
            return cls(kind=type(error), message=str(error), state=dict(vars(error)))
        return cls(kind=RuntimeError, message="".join(traceback.format_exception(error)), state={})

    def error(self) -> Exception:
        """The same error again."""
        made = self.kind.__new__(self.kind, self.message)
        made.__dict__.update(self.state)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a task."""

    number: int
    outcome: Outcome | Raised


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """A worker wants to know whether an answer is stored; the reply is it, or ``None``."""

    call: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """A worker wants an answer stored; the reply is ``None``, once it is committed."""

    call: Call
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A call for which `Find` found nothing left no answer in the store; the reply is ``None``."""


Question = Find | Keep | Failed
Reply = Completion | Raised | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions of one worker, and the number under which it waits for the replies."""

    number: int
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The dataset cannot go on."""

    message: str


Message = Asked | Ended | Broken
