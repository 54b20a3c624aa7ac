"""What the store gives and takes, one value a row."""

from __future__ import annotations

from dataclasses import dataclass

from vlmguard.synthesis.outcomes import Kind, Outcome, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What identifies an answer beyond its key.

    Attributes:
        key: 16 bytes.
        stage, model, prompt: for people and statistics; the prompt is a hash.
    """

    key: bytes
    stage: Stage
    model: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An outcome without its body.

    Attributes:
        position: of the seed in the sources, from 0.
        key: of the seed and everything that decides about it.
        kind, stage, passed: as in `Outcome`.
    """

    position: int
    key: str
    kind: Kind
    stage: Stage
    passed: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An outcome with its seed.

    Attributes:
        seed: its id.
        draw: decides which harmless records are kept (`vlmguard.synthesis.store.draw_of`).
        outcome: with its body.
    """

    seed: str
    draw: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCount:
    """How many outcomes are alike."""

    kind: Kind
    stage: Stage
    passed: tuple[Stage, ...]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCount:
    """What a stage has asked a model, and what that took."""

    stage: Stage
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
