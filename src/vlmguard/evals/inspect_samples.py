"""Samples as Inspect holds them, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.model import ChatMessageUser, Content, ContentImage, ContentText
from inspect_ai.solver import TaskState
from pydantic import TypeAdapter

from vlmguard.evals.benchmarks import FilePicture
from vlmguard.evals.described import DescribedPicture
from vlmguard.evals.types import Picture, Sample
from vlmguard.images import load_image
from vlmguard.types import Image

_REFERENCE = TypeAdapter(dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inline:
    """A picture of a sample as Inspect holds it: a path or a ``data:`` URL."""

    source: str

    def load(self) -> Image:
        """The encoded picture."""
        return load_image(self.source)


def to_inspect(sample: Sample) -> InspectSample:
    """A sample of ours as Inspect's; what judges need stands in its metadata."""
    content: list[Content] = [
        ContentImage(image=_source(picture))
        for picture in sample.pictures
        if not isinstance(picture, DescribedPicture)
    ]
    content.append(ContentText(text=sample.prompt))
    return InspectSample(
        id=sample.id,
        input=[ChatMessageUser(content=content)],
        target=sample.kind,
        metadata=sample_metadata(sample),
    )


def sample_metadata(sample: Sample) -> dict[str, Any]:
    """What Inspect's logs keep of a sample beside its input."""
    return {
        "benchmark": sample.benchmark,
        "prompt": sample.prompt,
        "kind": sample.kind,
        "category": sample.category,
        "subset": sample.subset,
        "goal": sample.goal,
        "description": sample.description,
        "reference": dict(sample.reference),
    }


def _source(picture: Picture) -> str:
    """A file is read by Inspect when its sample runs; anything else is drawn or read now."""
    if isinstance(picture, FilePicture) and picture.path is not None:
        return str(picture.path)
    return picture.load().data_url()


def from_state(state: TaskState) -> Sample:
    """The sample of a running or logged state."""
    told = state.metadata
    pictures: list[Picture] = []
    if told["description"] is not None:
        pictures.append(DescribedPicture(description=told["description"]))
    given = state.input if isinstance(state.input, list) else []
    for message in given:
        if not isinstance(message.content, str):
            pictures += [
                _Inline(source=part.image)
                for part in message.content
                if isinstance(part, ContentImage)
            ]
    return Sample(
        benchmark=told["benchmark"],
        id=str(state.sample_id),
        prompt=told["prompt"],
        kind=told["kind"],
        pictures=tuple(pictures),
        description=told["description"],
        category=told["category"],
        subset=told["subset"],
        goal=told["goal"],
        reference=_REFERENCE.validate_python(told["reference"]),
    )
