"""A record as a rewriter is trained on it."""

from __future__ import annotations

from dataclasses import dataclass

from vlmguard.data.records import TrainingRecord
from vlmguard.prompts import load_prompt
from vlmguard.rewriting.format import Layout, render_assessment, render_request
from vlmguard.rewriting.windows import clip_context
from vlmguard.types import Image, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What a rewriter reads and what it is to write.

    Attributes:
        system, request: what it reads.
        completion: what it is to write.
        images: that it sees; empty for models that cannot see.
        names: the images' paths in an export, in order.
    """

    system: str
    request: str
    completion: str
    images: tuple[Image, ...] = ()
    names: tuple[str, ...] = ()


def example_of(
    record: TrainingRecord, *, blind: bool, layout: Layout, images: tuple[Image, ...] = ()
) -> Example:
    """Render a record exactly as `vlmguard.rewriting.PromptedRewriter` asks when serving.

    Args:
        record: any.
        blind: the pictures' evidence is part of the request; for models that cannot see.
        layout: the order in which the rewriter is to write.
        images: the record's pictures, for models that can see.
    """
    request = render_request(
        Message(role="user", text=record.prompt),
        earlier=clip_context([turn.as_message() for turn in record.earlier]),
        evidence=[seen.as_image_evidence() for seen in record.evidence] if blind else (),
    )
    return Example(
        system=load_prompt("vlmguard.rewriting", "trained.md").text,
        request=request,
        completion=render_assessment(record.assessment(), layout),
        images=images,
        names=tuple(ref.path for ref in record.images) if images else (),
    )
