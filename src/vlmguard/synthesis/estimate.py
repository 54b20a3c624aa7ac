"""What a run would do and cost, before it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmguard.synthesis import causal, hindsight, judge, optimize
from vlmguard.synthesis.feed import place, walk
from vlmguard.synthesis.limits import IMAGE_TOKENS
from vlmguard.synthesis.outcomes import Stage
from vlmguard.synthesis.pipeline import Recipe
from vlmguard.synthesis.rows import CallCount
from vlmguard.synthesis.seeds import Picture, Seed
from vlmguard.synthesis.sources import Source
from vlmguard.synthesis.store import Store

_CHARACTERS_A_TOKEN = 4
_ANSWER_TOKENS: Mapping[str, int] = {
    "hindsight": 220,
    "causal": 200,
    "optimize": 110,
    "judge": 60,
    "target": 250,
}
"""Guesses for calls of which the store has none yet."""
_ATTEMPTS = 1.4  # rewrites a record, on average; a guess
_DRAWS = 0.75  # of the draws that are allowed


@dataclass(slots=True)
class StageEstimate:
    """One stage's part: calls by the role that answers, and tokens."""

    calls: float = 0
    prompt_tokens: float = 0
    completion_tokens: float = 0


@dataclass(slots=True)
class Estimate:
    """What a run would do.

    Attributes:
        seeds: in the sources.
        done: finished by an earlier run.
        benign: taken as harmless without a call.
        aside: cannot be used: problems, missing picture files, missing answers without sampling.
        reasons: why, with counts.
        sampled: an answer has to be sampled.
        pictures: over all seeds.
        parts: (stage, role) → calls and tokens.
    """

    seeds: int = 0
    done: int = 0
    benign: int = 0
    aside: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    sampled: int = 0
    pictures: int = 0
    parts: dict[tuple[Stage, str], StageEstimate] = field(default_factory=dict)

    @property
    def to_do(self) -> int:
        """Seeds that models would be asked about."""
        return self.seeds - self.done - self.benign - self.aside

    def totals(self, roles: Sequence[str]) -> StageEstimate:
        """Over all stages, for these roles."""
        total = StageEstimate()
        for (_, role), part in self.parts.items():
            if role in roles:
                total.calls += part.calls
                total.prompt_tokens += part.prompt_tokens
                total.completion_tokens += part.completion_tokens
        return total


async def estimate(
    sources: Sequence[Source],
    recipe: Recipe,
    recipe_key: str,
    store: Store | None,
    *,
    can_sample: bool,
    limit: int | None,
) -> Estimate:
    """Read all seeds and add up what they would take. Tokens are guesses; no model is asked.

    Args:
        sources: of the run.
        recipe: of the run.
        recipe_key: of the run (`vlmguard.synthesis.runner.recipe_key`).
        store: of an earlier run, where there is one: what it did is left out, and its answers'
            lengths replace guesses.
        can_sample: whether there are a target and a judge.
        limit: seeds to look at; ``None`` is all.

    Raises:
        DataError: a source is not what it was taken for.
    """
    found = Estimate()
    lengths = dict(_ANSWER_TOKENS)
    placed = place(sources, recipe_key, limit)
    if store is None:
        for item in placed:
            _add(found, item.seed, recipe, lengths, can_sample=can_sample)
        return found
    lengths |= _measured(store.call_counts())
    async for step in walk(placed, store):
        if step.done is None:
            _add(found, step.placed.seed, recipe, lengths, can_sample=can_sample)
        else:
            found.seeds += 1
            found.done += 1
    return found


def _measured(counts: Sequence[CallCount]) -> dict[str, int]:
    """Mean answer lengths of the reasoner's stages, as stored."""
    return {
        count.stage: round(count.completion_tokens / count.calls)
        for count in counts
        if count.stage in {"hindsight", "causal", "optimize"} and count.calls >= 20
    }


def _add(
    found: Estimate, seed: Seed, recipe: Recipe, lengths: Mapping[str, int], *, can_sample: bool
) -> None:
    found.seeds += 1
    found.pictures += len(seed.images)
    lacking = seed.safe_response is None or seed.unsafe_response is None
    reason = seed.problem and "unreadable or wrong"
    if reason is None and any(map(_absent, seed.images)):
        reason = "a picture file is missing"
    if reason is None and seed.label == "benign" and recipe.trust_benign:
        found.benign += 1
        return
    if reason is None and lacking and seed.label != "benign":
        if not can_sample or recipe.draws == 0:
            reason = "an answer is missing, and nothing samples"
        else:
            found.sampled += 1
    if reason is not None:
        found.aside += 1
        found.reasons[reason] = found.reasons.get(reason, 0) + 1
        return
    _add_calls(found, seed, recipe, lengths, lacking=lacking)


def _add_calls(
    found: Estimate, seed: Seed, recipe: Recipe, lengths: Mapping[str, int], *, lacking: bool
) -> None:
    request = _tokens(seed.prompt) + IMAGE_TOKENS * len(seed.images)
    pair = sum(_tokens(text) for text in (seed.safe_response, seed.unsafe_response) if text)
    drawn = lengths["target"]

    def add(stage: Stage, role: str, kind: str, times: float, prompt: float) -> None:
        part = found.parts.setdefault((stage, role), StageEstimate())
        part.calls += times
        part.prompt_tokens += times * prompt
        part.completion_tokens += times * lengths[kind]

    if seed.label == "benign":
        add("causal", "reasoner", "causal", 1, _tokens(causal.SYSTEM) + request)
        return
    grading = _tokens(judge.PROMPT.text) + request + drawn
    if lacking:
        draws = max(1.0, _DRAWS * recipe.draws)
        add("sample", "target", "target", draws, request)
        add("sample", "judge", "judge", draws, grading)
        pair += drawn
    add("hindsight", "reasoner", "hindsight", 1, _tokens(hindsight.PROMPT.text) + request + pair)
    features = lengths["hindsight"]
    add("causal", "reasoner", "causal", 1, _tokens(causal.SYSTEM) + request + features)
    tries = min(_ATTEMPTS, recipe.attempts) if recipe.verify else 1.0
    report = _tokens(optimize.PROMPT.text) + request + lengths["causal"]
    add("optimize", "reasoner", "optimize", tries, report)
    if recipe.verify:
        add("verify", "target", "target", tries, request + lengths["optimize"])
        add("verify", "judge", "judge", tries + 1, grading)


def _tokens(text: str) -> int:
    return len(text) // _CHARACTERS_A_TOKEN + 1


def _absent(picture: Picture) -> bool:
    return isinstance(picture, Path) and not picture.is_file()
