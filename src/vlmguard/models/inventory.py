"""What the store knows and what is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmguard.models import hub, store
from vlmguard.models.known import KNOWN, KnownModel

State = Literal["here", "partial", "absent", "damaged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One line of `listing`.

    Attributes:
        name: what to give to ``vlmguard pull`` and to engines.
        what: one line about it.
        state: ``"partial"`` is an interrupted pull, which the next one continues.
        size: bytes on disk; of the file to come where it is not here.
        licence: SPDX identifier, or what a model card says.
        source: where it comes from.
        path: its file or folder; ``None`` where it is not here.
        problem: why it is damaged.
    """

    name: str
    what: str
    state: State
    size: int
    licence: str
    source: str
    path: Path | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the output of ``vlmguard models --json``."""
        return {
            "name": self.name,
            "what": self.what,
            "state": self.state,
            "size": self.size,
            "licence": self.licence,
            "source": self.source,
            "path": None if self.path is None else str(self.path),
            "problem": self.problem,
        }


def listing(*, verify: bool = False) -> tuple[ListedModel, ...]:
    """All known models, here or not, then every model in the Hugging Face Hub's cache.

    Args:
        verify: hash the files of known models anew (98 MB take about 0.1 s). Files from the Hub
            carry no hash to compare with.
    """
    known = (_known(model, verify=verify) for model in KNOWN.values())
    cached = (
        ListedModel(
            name=f"hf:{snapshot.repo}",
            what="from the Hugging Face Hub",
            state="here",
            size=snapshot.size,
            licence=snapshot.licence,
            source=f"hf:{snapshot.repo}@{snapshot.commit[:12]}",
            path=snapshot.path,
        )
        for snapshot in hub.cached_snapshots()
    )
    return (*known, *cached)


def _known(model: KnownModel, *, verify: bool) -> ListedModel:
    path, part = store.path_of(model), store.part_of(model)
    state: State = "absent"
    size, problem = model.size, None
    if path.exists():
        problem = store.problem_with(model, full=verify)
        state = "damaged" if problem else "here"
        size = path.stat().st_size
    elif part.exists():
        state = "partial"
    return ListedModel(
        name=model.name,
        what=model.what,
        state=state,
        size=size,
        licence=model.licence,
        source=f"{model.source.package} {model.source.version} (Python package index)",
        path=path if path.exists() else None,
        problem=problem,
    )
