"""Results as a JSON file, and back.

The form is that of a run's ``results.json`` (`vlmguard.evals.collect.results_json`) with the
samples as ``views`` beside it: a report can be made from one file, without the benchmarks' data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from vlmguard.errors import DataError, InputError
from vlmguard.evals.collect import results_json
from vlmguard.evals.report.files import write_parts
from vlmguard.evals.report.thumbnails import Thumbnail, thumbnail
from vlmguard.evals.types import Answer, Cell, Judgement, Kind, Results, Sample, SampleView
from vlmguard.images import load_image

_ANSWER = TypeAdapter(Answer)
_JUDGEMENT = TypeAdapter(Judgement)


class _SavedPicture(BaseModel):
    """A small picture, or why there is none."""

    # Nothing but data: a file of others' must not name a file of ours.
    data_url: str | None = Field(default=None, pattern="^data:image/")
    missing: str = ""

    def thumbnail(self) -> Thumbnail:
        if self.data_url is None:
            return Thumbnail(missing=self.missing)
        return Thumbnail(image=load_image(self.data_url))


class _SavedSample(BaseModel):
    benchmark: str
    id: str
    prompt: str
    kind: Kind
    pictures: list[_SavedPicture] = []
    description: str | None = None
    category: str = ""
    subset: str = ""
    goal: str = ""
    reference: dict[str, str] = {}

    def sample(self) -> Sample:
        return Sample(
            benchmark=self.benchmark,
            id=self.id,
            prompt=self.prompt,
            kind=self.kind,
            pictures=tuple(picture.thumbnail() for picture in self.pictures),
            description=self.description,
            category=self.category,
            subset=self.subset,
            goal=self.goal,
            reference=self.reference,
        )


class _SavedAnswer(BaseModel):
    answer: Answer
    judgements: list[Judgement] = []


class _SavedView(BaseModel):
    sample: _SavedSample
    answers: list[_SavedAnswer] = []

    def view(self) -> SampleView:
        return SampleView(
            sample=self.sample.sample(),
            answers=tuple((each.answer, tuple(each.judgements)) for each in self.answers),
        )


class _SavedResults(BaseModel):
    cells: list[Cell]
    views: list[_SavedView] = []
    versions: dict[str, str] = {}
    seeds: dict[str, int] = {}
    dataset_hashes: dict[str, str] = {}
    command: str = ""
    settings: dict[str, Any] = {}
    compared_to: str = "none"


def save_results(results: Results, path: Path) -> None:
    """Write results with their samples; pictures as small copies.

    Args:
        results: of a run.
        path: replaced in one step; one sample is encoded at a time.

    Raises:
        DataError: it cannot be written.
    """
    write_parts(path, json_parts(results))


def load_results(path: Path) -> Results:
    """Read results that `save_results` or a run wrote.

    Raises:
        DataError: the file is missing, or it is not such a file; says where.
    """
    try:
        saved = _SavedResults.model_validate_json(path.read_bytes())
        views = tuple(view.view() for view in saved.views)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"no results of an evaluation: {where}: {first['msg']}", path=path
        ) from None
    except InputError as error:
        raise DataError(f"a picture is damaged: {error}", path=path) from None
    return Results(
        cells=tuple(saved.cells),
        views=views,
        versions=saved.versions,
        seeds=saved.seeds,
        dataset_hashes=saved.dataset_hashes,
        command=saved.command,
        settings=saved.settings,
        compared_to=saved.compared_to,
    )


def json_parts(results: Results) -> Iterator[str]:
    """The file in pieces; one sample is encoded at a time."""
    head = json.dumps(results_json(results), ensure_ascii=False, default=str)
    yield head.removesuffix("}") + ', "views": ['
    for number, view in enumerate(results.views):
        yield ",\n" if number else "\n"
        yield json.dumps(_view(view), ensure_ascii=False)
    yield "\n]}\n"


def _view(view: SampleView) -> Mapping[str, Any]:
    sample = view.sample
    return {
        "sample": {
            "benchmark": sample.benchmark,
            "id": sample.id,
            "prompt": sample.prompt,
            "kind": sample.kind,
            "pictures": [_picture(thumbnail(picture)) for picture in sample.pictures],
            "description": sample.description,
            "category": sample.category,
            "subset": sample.subset,
            "goal": sample.goal,
            "reference": dict(sample.reference),
        },
        "answers": [
            {
                "answer": _ANSWER.dump_python(answer, mode="json"),
                "judgements": [_JUDGEMENT.dump_python(said, mode="json") for said in judgements],
            }
            for answer, judgements in view.answers
        ],
    }


def _picture(small: Thumbnail) -> Mapping[str, str]:
    if small.image is None:
        return {"missing": small.missing}
    return {"data_url": small.image.data_url()}
