"""From the store to the dataset: records in the order of the seeds, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data import (
    CardFacts,
    DatasetWriter,
    ModelFacts,
    PromptFacts,
    SourceFacts,
    StageFacts,
)
from vlmguard.synthesis.outcomes import MODEL_STAGES, Kind
from vlmguard.synthesis.pipeline import PROMPT_HASHES, Recipe
from vlmguard.synthesis.progress import Progress
from vlmguard.synthesis.sources import Source
from vlmguard.synthesis.store import Store, translated

WORK_FOLDER = "synthesis"
"""Beside the dataset, not part of it: the store, and the seeds that did not make it."""


def store_path(folder: Path) -> Path:
    """Where the store of an output folder is."""
    return folder / WORK_FOLDER / "store.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What went into the dataset.

    Attributes:
        risky, benign: records.
        benign_left_out: harmless records over the share that was asked for.
    """

    risky: int
    benign: int
    benign_left_out: int


def publish(
    store: Store, folder: Path, *, total: int, card: CardFacts, benign_share: float | None
) -> Published:
    """Write the dataset, ``rejected.jsonl`` and ``aside.jsonl``. Same store, same bytes.

    Args:
        store: of the run.
        folder: of the dataset.
        total: seeds in the sources.
        card: what the card says.
        benign_share: highest share 0..1 of harmless records; ``None`` keeps all.

    Raises:
        DataError, StoreError: something cannot be written.
    """
    counts = dict.fromkeys(("accepted", "benign"), 0)
    for alike in store.outcome_counts(total=total):
        if alike.kind in counts:
            counts[alike.kind] += alike.count
    keep = counts["benign"]
    if benign_share is not None:
        keep = min(keep, allowed_benign(counts["accepted"], benign_share))
    highest = store.draw_threshold("benign", keep, total=total)
    writer = DatasetWriter(folder)
    for found in store.outcomes(("accepted", "benign"), total=total):
        if found.outcome.kind == "benign" and highest is not None and found.draw > highest:
            continue
        assert found.outcome.record is not None
        writer.add(found.outcome.record)
    writer.finish(card)
    _list_left_out(store, folder, total)
    return Published(risky=counts["accepted"], benign=keep, benign_left_out=counts["benign"] - keep)


def _list_left_out(store: Store, folder: Path, total: int) -> None:
    kinds: tuple[Kind, ...] = ("rejected", "aside")
    for kind in kinds:
        path = folder / WORK_FOLDER / f"{kind}.jsonl"
        with translated(path), path.open("w", encoding="utf-8") as file:
            for left in store.outcomes((kind,), total=total):
                told = left.outcome.model_dump(mode="json", exclude_defaults=True)
                file.write(json.dumps({"id": left.seed, **told}, ensure_ascii=False) + "\n")


def allowed_benign(risky: int, share: float) -> int:
    """How many harmless records make up at most ``share`` 0..1 beside that many risky ones."""
    if share >= 1:
        return 2**62
    return int(share / (1 - share) * risky + 1e-9)


def card_facts(
    sources: Sequence[Source],
    models: Mapping[str, str],
    recipe: Recipe,
    progress: Progress,
    *,
    licence: str,
) -> CardFacts:
    """What the card says about how the records came about.

    Args:
        sources: of the run.
        models: role → spec.
        recipe: of the run.
        progress: its counts, when it is done.
        licence: of seeds that state none; may be empty.
    """
    rejected, aside = progress.kinds["rejected"], progress.kinds["aside"]
    notes = [f"{rejected:,} seeds were rejected and {aside:,} could not be used."]
    if recipe.verify:
        bar = recipe.bar
        notes.append(
            f"Every rewrite was tried on the target: its answer was judged safer than the answer "
            f"to the request as it was, with at least {bar.safety} of 10 for safety and "
            f"{bar.helpfulness} for helpfulness, within {recipe.attempts} attempts."
        )
    else:
        notes.append("The rewrites were not verified on a target.")
    return CardFacts(
        title="Training set for a VLMGuard-R1 rewriter",
        summary="Requests with pictures, why they are risky, and how they were rewritten; made by "
        "`vlmguard synth run`.",
        licence=licence or "other",
        sources=tuple(
            SourceFacts(name=source.name, licence=licence or "as its owners state")
            for source in sources
        ),
        models=tuple(ModelFacts(role=role, name=name) for role, name in models.items()),
        prompts=tuple(
            PromptFacts(stage=stage, sha256=digest) for stage, digest in PROMPT_HASHES.items()
        ),
        stages=tuple(
            StageFacts(
                stage=stage,
                accepted=progress.stages[stage].done,
                rejected=progress.stages[stage].ended,
            )
            for stage in MODEL_STAGES
            if progress.stages[stage].done or progress.stages[stage].ended
        ),
        notes=tuple(notes),
    )
