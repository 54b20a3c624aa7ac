"""The seed: what a source gives and the pipeline turns into a record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Label = Literal["benign", "risky"]

Picture = Path | str | bytes
"""A picture that is not loaded yet: a path, a URL (``http:`` or ``data:``), or encoded bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One item of a source.

    Attributes:
        id: unique over all sources of a run.
        family: seeds that share a picture or a text; they stay in one split.
        prompt: the user's text [x_T]; may be empty when there is a picture.
        images: the pictures [x_I], not loaded yet.
        safe_response, unsafe_response: the contrasted answers [Y_safe, Y_unsafe], where given.
        label: what the source says about the request; ``None`` when it says nothing.
        source, licence: where it came from.
        meta: anything else that is worth keeping; JSON values only.
        problem: why the seed cannot be used, found while reading it; it is set aside, not lost.
    """

    id: str
    family: str
    prompt: str
    images: tuple[Picture, ...] = ()
    safe_response: str | None = None
    unsafe_response: str | None = None
    label: Label | None = None
    source: str = ""
    licence: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def fingerprint(self) -> str:
        """Changes when anything about the seed does.

        A file counts by path, size and time of change, as in make: a look at a million pictures
        must not read them. When only the time changed, the seed is gone through again, and every
        call is answered from the store, where pictures count by their content.
        """
        parts = (
            self.id,
            self.family,
            self.prompt,
            self.safe_response,
            self.unsafe_response,
            self.label,
            self.source,
            self.licence,
            self.problem,
            json.dumps(self.meta, sort_keys=True, ensure_ascii=False) if self.meta else "",
            *map(_identity, self.images),
        )
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _identity(picture: Picture) -> tuple[object, ...]:
    if isinstance(picture, bytes):
        return ("bytes", hashlib.sha256(picture).hexdigest())
    if isinstance(picture, str):
        return ("url", picture)
    try:
        found = picture.stat()
    except (OSError, ValueError):
        return ("missing", str(picture))
    return ("file", str(picture), found.st_size, found.st_mtime_ns)
