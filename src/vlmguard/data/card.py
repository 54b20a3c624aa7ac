"""The dataset card: ``README.md`` with YAML front matter, as the Hugging Face Hub reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vlmguard.data.records import SCHEMA_VERSION
from vlmguard.data.tally import META_FACETS, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Where seeds came from.

    Attributes:
        name: as in the records' ``source``.
        licence: as its owners state it.
        url: for the reader; may be empty.
    """

    name: str
    licence: str
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model that took part: its role (``"reasoner"``, ``"target"``, ``"judge"``) and name."""

    role: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFacts:
    """A prompt that was used, by the hash of its text."""

    stage: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """How many records a stage let through."""

    stage: str
    accepted: int
    rejected: int

    @property
    def accept_rate(self) -> float | None:
        """0..1; ``None`` when the stage saw nothing."""
        seen = self.accepted + self.rejected
        return self.accepted / seen if seen else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What the writer cannot count by itself.

    Attributes:
        title: of the dataset.
        summary: a paragraph, Markdown.
        licence: of the whole, as an identifier of the Hub (``"apache-2.0"``, ``"other"``, …).
        languages: ISO 639-1 codes; those of the records' meta are added.
        sources, models, prompts, stages: one entry each.
        notes: what a user of the data should know; one list item each, Markdown.
    """

    title: str
    summary: str = ""
    licence: str = "other"
    languages: tuple[str, ...] = ()
    sources: tuple[SourceFacts, ...] = ()
    models: tuple[ModelFacts, ...] = ()
    prompts: tuple[PromptFacts, ...] = ()
    stages: tuple[StageFacts, ...] = ()
    notes: tuple[str, ...] = ()


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
_WARNING = (
    "The records describe harmful requests so that models can recognize them. "
    "Do not train a model to fulfil them."
)


def render_card(facts: CardFacts, tally: Tally) -> str:
    """The card's text; the same facts and counts give the same text."""
    parts = [f"# {_line(facts.title)}", facts.summary.strip(), f"> {_WARNING}"]
    parts += _provenance(facts)
    parts += ["## Counts", f"{tally.records:,} records with {tally.pictures:,} pictures."]
    for facet in ("split", "verdict", "category", *META_FACETS):
        if ranked := tally.ranked(facet):
            rows = [(value, f"{n:,}", f"{n / tally.records:.1%}") for value, n in ranked]
            parts.append(_table((facet, "records", "share"), rows))
    lengths = [
        (name, f"{found.count:,}", f"{found.mean:.0f}", found.median, found.p95, found.longest)
        for name, found in tally.lengths().items()
    ]
    if lengths:
        heads = ("field", "records", "mean", "median", "95 %", "longest")
        parts += ["## Lengths in characters", _table(heads, lengths)]
    if facts.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in facts.notes)]
    parts.append(f"Schema version {SCHEMA_VERSION}. Check the files: `vlmguard data check FOLDER`.")
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{_front_matter(facts, tally)}---\n\n{body}\n"


def _provenance(facts: CardFacts) -> list[str]:
    parts: list[str] = []
    if facts.sources:
        rows = [(found.name, found.licence, found.url) for found in facts.sources]
        parts += ["## Sources", _table(("source", "licence", "address"), rows)]
    if facts.models:
        models = [(found.role, found.name) for found in facts.models]
        parts += ["## Models", _table(("role", "model"), models)]
    if facts.prompts:
        hashes = [(found.stage, f"`{found.sha256}`") for found in facts.prompts]
        parts += ["## Prompts", _table(("stage", "SHA-256 of the prompt"), hashes)]
    if facts.stages:
        rates = [
            (
                found.stage,
                f"{found.accepted:,}",
                f"{found.rejected:,}",
                "–" if found.accept_rate is None else f"{found.accept_rate:.1%}",
            )
            for found in facts.stages
        ]
        parts += ["## Accept rates", _table(("stage", "accepted", "rejected", "rate"), rates)]
    return parts


def _front_matter(facts: CardFacts, tally: Tally) -> str:
    seen = {value for value, _ in tally.ranked("language")}
    size = next((name for bound, name in _SIZES if tally.records < bound), "n>1M")
    splits = [
        {"split": split, "path": f"data/{split}-*.parquet"}
        for split in ("train", "validation", "test")
        if split in tally.counts.get("split", ())
    ]
    matter: dict[str, Any] = {
        "pretty_name": facts.title,
        "license": facts.licence.lower(),
        "language": sorted(seen.union(facts.languages)),
        "task_categories": ["image-text-to-text"],
        "tags": ["safety", "guardrails", "prompt-rewriting", "vlmguard"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": splits}],
    }
    kept = {key: value for key, value in matter.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_line(cell) for cell in line)} |" for line in lines)


def _line(cell: object) -> str:
    """One line that does not end its table cell."""
    return " ".join(str(cell).split()).replace("|", "\\|")
