"""From a spec string to a defence.

::

    none · self-reminder · figstep-prompt · adashield-s · ecso · jailguard
    adashield-a?pool=pool.json
    eta?reward=hf-classifier:org/model&clip=clip:openai/clip-vit-large-patch14-336
    mllm-protector?detector=engine-judge:openai:MODEL@URL&detoxifier=openai:MODEL@URL
    guard                       with the default rewriter
    guard:REWRITER?policy=…     guard:smollm2, guard:zero-shot:openai:MODEL@URL, guard:self
    my_package.my_module:open_defence?…

A spec inside a spec is written as it is, but for ``&`` (``%26``), ``+`` (``%2B``) and ``%``
(``%25``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vlmguard.defences.base import Defence
from vlmguard.defences.named import split_spec
from vlmguard.engines import Engine, EngineSpec, open_engine
from vlmguard.errors import ConfigError
from vlmguard.perception import Perceiver
from vlmguard.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a defence may need beside its spec.

    Attributes:
        perceiver: describes pictures to models that cannot see.
        target: the engine that will be defended, for ``guard:self``.
    """

    perceiver: Perceiver | None = None
    target: Engine | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceFacts:
    """A line of ``vlmguard defence list``.

    Attributes:
        name: of the spec.
        options: that the spec takes; ``*`` marks the needed ones.
        summary: what it does.
        calls: calls of models that it adds to one answer.
    """

    name: str
    options: str
    summary: str
    calls: str


KNOWN_DEFENCES = (
    DefenceFacts(name="none", options="", summary="The target as it is", calls="0"),
    DefenceFacts(
        name="self-reminder",
        options="",
        summary="A reminder to be responsible before and after the query",
        calls="0",
    ),
    DefenceFacts(
        name="figstep-prompt",
        options="",
        summary="A system prompt: read the picture's text first, do not follow it into harm",
        calls="0",
    ),
    DefenceFacts(
        name="adashield-s",
        options="",
        summary="Query, a fixed defence prompt, query again",
        calls="0",
    ),
    DefenceFacts(
        name="adashield-a",
        options="pool*, threshold, embedder",
        summary="The same with the prompt of the nearest example in a trained pool",
        calls="1 (CLIP)",
    ),
    DefenceFacts(
        name="ecso",
        options="temperature",
        summary="Asks if the answer is harmful; if so, answers again from a caption alone",
        calls="1, or 3 if flagged",
    ),
    DefenceFacts(
        name="eta",
        options="reward*, clip*, reward_threshold, clip_threshold",
        summary="Scores answer and picture; if unsafe, best of five for every sentence",
        calls="1 or 3 (scorers); then about 10 a sentence",
    ),
    DefenceFacts(
        name="mllm-protector",
        options="detector*, detoxifier*, threshold",
        summary="Scores the answer; an unsafe one is rewritten",
        calls="1, or 2 if unsafe",
    ),
    DefenceFacts(
        name="jailguard",
        options="embedder, threshold",
        summary="Answers eight changed copies of the request; refuses if the answers diverge",
        calls="7",
    ),
    DefenceFacts(
        name="guard",
        options=":REWRITER, policy",
        summary="VLMGuard-R1: a rewriter reviews the request and rewrites a risky one",
        calls="1, or 2 if risky",
    ),
)
"""The defences of this package, the simplest first and ours last."""

DEFENCES = Registry(
    "defence",
    {
        facts.name: f"vlmguard.defences.opening:open_{facts.name.replace('-', '_')}"
        for facts in KNOWN_DEFENCES
    },
    group="vlmguard.defences",
)
"""Name → a function ``(EngineSpec, Surroundings) -> Defence``. Models load on first use."""


def open_defence(
    spec: str, *, perceiver: Perceiver | None = None, target: Engine | None = None
) -> Defence:
    """Open the defence that a spec string names.

    Args:
        spec: see the module.
        perceiver: describes pictures to models that cannot see; by default one with all
            detectors, loaded when first needed.
        target: the engine that will be defended; needed for ``guard:self`` only.

    Raises:
        UnknownName: unknown name; lists those there are.
        ConfigError: malformed, or an option is missing, unknown or wrong.
        MissingExtra: its dependencies are not installed.
    """
    if not spec.strip():
        raise ConfigError(f"empty defence; known: {', '.join(DEFENCES.names())}")
    parsed = split_spec(DEFENCES, spec)
    around = Surroundings(perceiver=perceiver or Perceiver(), target=target)
    opener: Callable[[EngineSpec, Surroundings], Defence] = DEFENCES.load(parsed.scheme)
    if parsed.value and parsed.scheme != "guard":
        raise ConfigError(
            f"the defence {parsed.scheme} takes no ':{parsed.value}'; options follow a '?', as in "
            f"{parsed.scheme}?key=value"
        )
    return opener(parsed, around)


def _wanted(spec: EngineSpec, **needed: str) -> None:
    """Refuse a spec without its needed options; each is told with an example."""
    missing = {key: example for key, example in needed.items() if key not in spec.options}
    if missing:
        listed = " and ".join(f"{key} (e.g. {key}={example})" for key, example in missing.items())
        raise ConfigError(f"the defence {spec.scheme} needs the option {listed}")


def open_none(spec: EngineSpec, around: Surroundings) -> Defence:
    """``none``."""
    from vlmguard.defences.none import NoDefence  # noqa: PLC0415  # as all below: when used

    spec.take()
    return NoDefence(around.perceiver)


def open_self_reminder(spec: EngineSpec, around: Surroundings) -> Defence:
    """``self-reminder``."""
    from vlmguard.defences.self_reminder import SelfReminder  # noqa: PLC0415

    spec.take()
    return SelfReminder(around.perceiver)


def open_figstep_prompt(spec: EngineSpec, around: Surroundings) -> Defence:
    """``figstep-prompt``."""
    from vlmguard.defences.figstep_prompt import FigStepPrompt  # noqa: PLC0415

    spec.take()
    return FigStepPrompt(around.perceiver)


def open_adashield_s(spec: EngineSpec, around: Surroundings) -> Defence:
    """``adashield-s``."""
    from vlmguard.defences.adashield import AdaShieldS  # noqa: PLC0415

    spec.take()
    return AdaShieldS(around.perceiver)


def open_adashield_a(spec: EngineSpec, around: Surroundings) -> Defence:
    """``adashield-a?pool=FILE[&threshold=0.7][&embedder=SPEC]``.

    Raises:
        ConfigError: no pool, or one that cannot be read.
    """
    from vlmguard.defences.adashield import THRESHOLD, AdaShieldA  # noqa: PLC0415
    from vlmguard.defences.adashield_pool import load_pool  # noqa: PLC0415
    from vlmguard.defences.embedding import open_embedder  # noqa: PLC0415

    options = spec.take(pool=str, threshold=float, embedder=str)
    _wanted(spec, pool="pool.json, made by `vlmguard defence train adashield-a`")
    embedder = options.get("embedder")
    return AdaShieldA(
        load_pool(Path(str(options["pool"]))),
        threshold=float(str(options.get("threshold", THRESHOLD))),
        embedder=None if embedder is None else open_embedder(str(embedder)),
        perceiver=around.perceiver,
    )


def open_ecso(spec: EngineSpec, around: Surroundings) -> Defence:
    """``ecso[?temperature=0.2]``."""
    from vlmguard.defences.ecso import TEMPERATURE, Ecso  # noqa: PLC0415

    options = spec.take(temperature=float)
    temperature = float(str(options.get("temperature", TEMPERATURE)))
    return Ecso(temperature=temperature, perceiver=around.perceiver)


def open_eta(spec: EngineSpec, around: Surroundings) -> Defence:
    """``eta?reward=SPEC&clip=SPEC[&reward_threshold=0.06][&clip_threshold=0.16]``."""
    from vlmguard.defences.embedding import open_embedder  # noqa: PLC0415
    from vlmguard.defences.eta import Eta, EtaSettings  # noqa: PLC0415
    from vlmguard.defences.scoring import open_scorer  # noqa: PLC0415

    options = spec.take(reward=str, clip=str, reward_threshold=float, clip_threshold=float)
    _wanted(
        spec,
        reward="engine-judge:openai:MODEL@URL",
        clip="clip:openai/clip-vit-large-patch14-336",
    )
    reward, clip = str(options.pop("reward")), str(options.pop("clip"))
    return Eta(
        open_scorer(reward),
        open_embedder(clip),
        settings=replace(EtaSettings(), **options),  # type: ignore[arg-type]
        perceiver=around.perceiver,
    )


def open_mllm_protector(spec: EngineSpec, around: Surroundings) -> Defence:
    """``mllm-protector?detector=SCORER&detoxifier=ENGINE[&threshold=0.5]``."""
    from vlmguard.defences.mllm_protector import THRESHOLD, MllmProtector  # noqa: PLC0415
    from vlmguard.defences.scoring import open_scorer  # noqa: PLC0415

    options = spec.take(detector=str, detoxifier=str, threshold=float)
    _wanted(spec, detector="engine-judge:openai:MODEL@URL", detoxifier="openai:MODEL@URL")
    return MllmProtector(
        open_scorer(str(options["detector"])),
        open_engine(str(options["detoxifier"])),
        threshold=float(str(options.get("threshold", THRESHOLD))),
        perceiver=around.perceiver,
    )


def open_jailguard(spec: EngineSpec, around: Surroundings) -> Defence:
    """``jailguard[?embedder=SPEC][&threshold=0.025]``."""
    from vlmguard.defences.embedding import open_embedder  # noqa: PLC0415
    from vlmguard.defences.jailguard import JailGuard  # noqa: PLC0415

    options = spec.take(embedder=str, threshold=float)
    embedder, threshold = options.get("embedder"), options.get("threshold")
    return JailGuard(
        None if embedder is None else open_embedder(str(embedder)),
        threshold=None if threshold is None else float(str(threshold)),
        perceiver=around.perceiver,
    )


def open_guard(spec: EngineSpec, around: Surroundings) -> Defence:
    """``guard`` or ``guard:REWRITER``, with ``?policy=…`` among the rewriter's own options."""
    from vlmguard.defences.guard import Guard  # noqa: PLC0415
    from vlmguard.rewriting import open_rewriter  # noqa: PLC0415

    options = dict(spec.options)
    policy = options.pop("policy", "balanced")
    rewriter: str | None = None
    if spec.value:
        rewriter = str(EngineSpec(scheme=spec.value, options=options))
    elif options:
        raise ConfigError(f"{spec}: the only option of 'guard' without a rewriter is policy")
    return Guard(
        open_rewriter(rewriter, target=around.target, perceiver=around.perceiver),
        policy=policy,
        perceiver=around.perceiver,
    )
