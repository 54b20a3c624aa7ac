"""From spec strings to the models of a run, each opened once and behind its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vlmguard.engines import Capability, Engine, EngineSpec, open_engine
from vlmguard.perception import DescribedEngine, Perceiver
from vlmguard.synthesis.limits import LimitedEngine, Limits
from vlmguard.synthesis.progress import is_hosted

_LLAMACPP = frozenset({"threads", "parallel"})
_WITHOUT_EFFECT: Mapping[str, frozenset[str]] = {
    "openai": frozenset({"timeout", "retries", "key_env", "stream_usage", "streaming", "logprobs"}),
    "vllm": frozenset({"gpu_memory_utilization", "tensor_parallel_size", "enforce_eager"}),
    "hf": frozenset({"device"}),
    "llamacpp": _LLAMACPP,
    "smollm2": _LLAMACPP,
}
"""Options that change how a model is run or asked, and no more of its answers than chance does."""
_TRIES = 3
_NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A model in its part.

    Attributes:
        engine: the model, within its limits.
        identity: what decides its answers: its spec, and the eyes of a blind one.
    """

    engine: Engine
    identity: str


def open_players(
    specs: Mapping[str, str],
    *,
    limits: Limits = _NO_LIMITS,
    perceiver: Perceiver | None = None,
) -> dict[str, Player]:
    """Open the model of every role; roles of the same spec share one.

    Args:
        specs: role (``reasoner``, ``target``, ``judge``) → spec.
        limits: for hosted models; those on this machine are as fast as they are.
        perceiver: describes pictures to models that cannot see.

    Raises:
        ConfigError: malformed spec.
        MissingExtra: a dependency of an engine, or of a limit, is not installed.
    """
    opened: dict[str, Player] = {}
    for spec in specs.values():
        if spec not in opened:
            opened[spec] = player(open_engine(spec), limits=limits, perceiver=perceiver)
    return {role: opened[spec] for role, spec in specs.items()}


def player(
    engine: Engine, *, limits: Limits = _NO_LIMITS, perceiver: Perceiver | None = None
) -> Player:
    """An engine as a player."""
    identity = _identity(engine.spec)
    if Capability.VISION not in engine.capabilities and perceiver is not None:
        identity += f" with eyes {perceiver.fingerprint}"
        engine = DescribedEngine(engine, perceiver)
    if not is_hosted(engine.spec):
        # Hosted ones try again by themselves, and heed what their server says about it.
        limits = replace(limits, requests_per_minute=None, tokens_per_minute=None, tries=_TRIES)
    if limits != _NO_LIMITS:
        engine = LimitedEngine(engine, limits)
    return Player(engine=engine, identity=identity)


def _identity(spec: str) -> str:
    parsed = EngineSpec.parse(spec)
    idle = _WITHOUT_EFFECT.get(parsed.scheme)
    if idle is None:
        return spec
    kept = {key: value for key, value in parsed.options.items() if key not in idle}
    return str(replace(parsed, options=kept))
