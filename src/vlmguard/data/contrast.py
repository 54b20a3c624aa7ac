"""The format in which people author contrast sets: JSON Lines, pictures as what is seen in them.

A *family* is one scenario: risky records and harmless neighbours that share its words, picture or
layout. See ``datasets/contrast/README.md`` for the format and how to add a family.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vlmguard.data.records import Evidence, TrainingRecord, Turn
from vlmguard.data.splits import SplitShares, split_of
from vlmguard.rewriting.format import unique_keys
from vlmguard.rewriting.policy import CATEGORY_NAMES
from vlmguard.types import Verdict

Carrier = Literal[
    "prompt", "typed", "object", "text+object", "turns", "benign-image", "harmful-image"
]
"""What brings the risk, or what its harmless neighbour looks like."""
Style = Literal[
    "blunt", "polite", "role-play", "fiction", "research", "steps", "encoded", "injection"
]

MAX_REASON = 150
"""Characters of a reason. Short ones are all that a small model learns to write."""
MAX_REWRITE = 340
"""Characters of a rewrite."""

_NEEDS_PICTURE = {"typed", "object", "text+object", "benign-image", "harmful-image"}
_AfterRisky = Annotated[str, Field(min_length=1)] | None


class ContrastRecord(BaseModel):
    """A line of a contrast file. ``safe`` lines end with the verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    carrier: Carrier
    style: Style
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
    images: tuple[Evidence, ...]
    earlier: tuple[Turn, ...]
    prompt: str
    verdict: Verdict
    category: str | None = None
    textual: _AfterRisky = None
    visual: _AfterRisky = None
    multimodal: _AfterRisky = None
    rewrite: _AfterRisky = None

    @field_validator("category")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in CATEGORY_NAMES:
            raise ValueError(f"is none of {', '.join(CATEGORY_NAMES)}")
        return value

    @model_validator(mode="after")
    def _carried(self) -> ContrastRecord:
        if self.carrier == "prompt" and self.images:
            raise ValueError("carrier 'prompt' means text only, but there are images")
        if self.carrier in _NEEDS_PICTURE and not self.images:
            raise ValueError(f"carrier {self.carrier!r} needs an image")
        if self.carrier == "typed" and not any(image.text for image in self.images):
            raise ValueError("carrier 'typed' needs text in an image")
        if self.carrier == "turns" and not self.earlier:
            raise ValueError("carrier 'turns' needs earlier messages")
        return self


def parse_contrast(line: bytes, numbers: Counter[str], shares: SplitShares) -> TrainingRecord:
    """A line of a contrast file as a training record.

    Args:
        line: UTF-8 JSON.
        numbers: records of each family so far; counted up, since ids are ``family/number``.
        shares: of the splits.

    Raises:
        ValidationError: a field is wrong.
        ValueError: not JSON, or a key stands twice.
    """
    authored = ContrastRecord.model_validate(json.loads(line, object_pairs_hook=unique_keys))
    numbers[authored.family] += 1
    return TrainingRecord(
        id=f"{authored.family}/{numbers[authored.family]}",
        split=split_of(authored.family, shares),
        evidence=authored.images,
        source="contrast",
        licence="Apache-2.0",
        meta={
            "carrier": authored.carrier,
            "style": authored.style,
            "language": authored.language,
        },
        **authored.model_dump(exclude={"images", "carrier", "style", "language"}),
    )
