"""Samples as JSON inside the page, in pieces that the script parses when it needs them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlmguard.data.worddiff import word_diff
from vlmguard.errors import VLMGuardError
from vlmguard.evals.report.opinions import chips_of, judge_names, outcomes_of, yes_no_scores
from vlmguard.evals.report.thumbnails import Thumbnail, small_copy
from vlmguard.evals.types import Answer, Judgement, Picture, SampleView
from vlmguard.evals.votes import VOTE

PIECE = 100
"""Samples, or pictures, of one island."""
MAX_PICTURES = 2_000
MAX_PICTURE_BYTES = 24_000_000
_DIFF_CHARACTERS = 8_000  # a diff is quadratic where words repeat, and nobody reads longer ones

# Ends no script element, and is JavaScript's line end nowhere.
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def to_json(value: object) -> str:
    """JSON that can stand in a ``<script>`` element, whatever its texts are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE)


@dataclass(slots=True)
class Pictures:
    """Small copies, each once, up to a cap.

    Attributes:
        left_out: pictures over the cap.
    """

    left_out: int = 0
    _urls: list[str] = field(default_factory=list)
    _known: dict[str, int | str] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, picture: Picture) -> int | str:
        """The number of its copy, or why there is none."""
        if len(self._urls) >= MAX_PICTURES or self._bytes >= MAX_PICTURE_BYTES:
            self.left_out += 1
            return "left out: the page has as many pictures as it may"
        if isinstance(picture, Thumbnail):
            return self._keep(picture)
        try:
            image = picture.load()
        except (VLMGuardError, OSError) as error:
            return f"the picture cannot be shown: {error}"
        # By the original, so that a picture of many samples is scaled once.
        if image.sha256 not in self._known:
            self._known[image.sha256] = self._keep(small_copy(image))
        return self._known[image.sha256]

    def _keep(self, small: Thumbnail) -> int | str:
        if small.image is None:
            return small.missing
        digest = small.image.sha256
        if digest not in self._known:
            self._known[digest] = len(self._urls)
            self._urls.append(small.image.data_url())
            self._bytes += len(self._urls[-1])
        return self._known[digest]

    def islands(self) -> Iterator[str]:
        """Data URLs, `PIECE` at a time."""
        for start in range(0, len(self._urls), PIECE):
            yield to_json(self._urls[start : start + PIECE])


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the samples can be filtered by.

    Attributes:
        benchmarks, categories, targets, defences, verdicts: as they occur.
        outcomes: what judges said, e.g. ``"safe: no"``, ``"unscored"``.
        yes_no: scores that are yes or no.
        judges: judge → its name here.
    """

    benchmarks: tuple[str, ...]
    categories: tuple[str, ...]
    targets: tuple[str, ...]
    defences: tuple[str, ...]
    verdicts: tuple[str, ...]
    outcomes: tuple[str, ...]
    yes_no: frozenset[str]
    judges: Mapping[str, str]

    @classmethod
    def of(cls, views: Sequence[SampleView]) -> Choices:
        """Collected from all samples."""
        answers = [answer for view in views for answer, _ in view.answers]
        yes_no = yes_no_scores(views)
        outcomes = dict.fromkeys(
            outcome
            for view in views
            for answer, said in view.answers
            for outcome in outcomes_of(answer, said, yes_no)
        )
        return cls(
            benchmarks=_distinct(view.sample.benchmark for view in views),
            categories=tuple(sorted(_distinct(view.sample.category for view in views))),
            targets=_distinct(answer.target for answer in answers),
            defences=_distinct(answer.defence for answer in answers),
            verdicts=_distinct(answer.verdict or "" for answer in answers),
            outcomes=tuple(sorted(outcomes)),
            yes_no=yes_no,
            judges=judge_names(views),
        )


def sample_islands(
    views: Sequence[SampleView], pictures: Pictures, choices: Choices
) -> Iterator[str]:
    """The samples, `PIECE` at a time; their pictures are added to ``pictures`` on the way."""
    for start in range(0, len(views), PIECE):
        piece = views[start : start + PIECE]
        yield to_json([_sample(view, pictures, choices) for view in piece])


def _sample(view: SampleView, pictures: Pictures, choices: Choices) -> dict[str, Any]:
    sample = view.sample
    return {
        "benchmark": sample.benchmark,
        "subset": sample.subset,
        "id": sample.id,
        "kind": sample.kind,
        "category": sample.category,
        "prompt": sample.prompt,
        "goal": sample.goal,
        "description": sample.description,
        "reference": list(sample.reference.items()),
        "pictures": [pictures.add(picture) for picture in sample.pictures],
        "answers": [_answer(sample.prompt, answer, said, choices) for answer, said in view.answers],
    }


def _answer(
    prompt: str, answer: Answer, judgements: Sequence[Judgement], choices: Choices
) -> dict[str, Any]:
    return {
        "target": answer.target,
        "defence": answer.defence,
        "repeat": answer.repeat,
        "text": answer.text,
        "error": answer.error,
        "verdict": answer.verdict,
        "risk": _finite(answer.risk),
        "category": answer.category,
        "action": answer.action,
        "rewrite": None if answer.rewrite is None else _diff(prompt, answer.rewrite),
        "reasons": list(answer.reasons),
        "latency_ms": _finite(answer.latency_ms),
        "defence_ms": _finite(answer.defence_ms),
        "calls": answer.calls,
        "outcomes": list(outcomes_of(answer, judgements, choices.yes_no)),
        "chips": [
            asdict(chip) for chip in chips_of(answer, judgements, choices.yes_no, choices.judges)
        ],
        "judged": [
            {
                "judge": said.judge,
                "metrics": [
                    [name, _finite(value)]
                    for name, value in said.metrics.items()
                    if VOTE not in name
                ],
                "votes": [
                    [score, choices.judges[judge], _finite(value)]
                    for name, value in said.metrics.items()
                    if VOTE in name
                    for score, _, judge in [name.partition(VOTE)]
                ],
                "unscored": said.unscored,
                "explanation": said.explanation,
            }
            for said in judgements
        ],
    }


def _diff(before: str, after: str) -> list[tuple[str, str]]:
    if len(before) + len(after) > _DIFF_CHARACTERS:
        return [("removed", before), ("added", after)]
    return [(piece.kind, piece.text) for piece in word_diff(before, after)]


def _distinct(names: Iterator[str]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if name)


def _finite(value: float | None) -> float | None:
    """JSON has no infinities."""
    return value if value is not None and math.isfinite(value) else None
