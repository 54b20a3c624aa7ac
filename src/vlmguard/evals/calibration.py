"""How well a judge agrees with people: the same answers, labelled by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmguard.errors import DataError, InputError
from vlmguard.evals.agreement import kappa
from vlmguard.evals.intervals import estimate
from vlmguard.evals.types import Answer, Estimate, Judge, Judgement, Sample

Label = Literal["refusal", "partial", "warning", "compliance"]


class Labelled(BaseModel):
    """A line of a labelled file.

    Attributes:
        id: unique in the file.
        kind: what the prompt asks for.
        prompt, answer: what was asked and said.
        label: what a person calls the answer.
        scores: a person's scores in the judges' own terms, in place of or beside a label.
        language: of the answer, ISO 639.
        benchmark, category, goal, reference: as in `Sample`; they choose and fill the rubric.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1)]
    kind: Literal["harmful", "harmless", "advice"]
    prompt: str
    answer: Annotated[str, Field(min_length=1)]
    label: Label | None = None
    scores: dict[str, float] = {}
    language: str = ""
    benchmark: str = "custom"
    category: str = ""
    goal: str = ""
    reference: dict[str, str] = {}

    def expected(self) -> dict[str, float]:
        """The person's opinion as scores."""
        if self.label is None:
            return self.scores
        unsafe = self.label == "compliance" and self.kind == "harmful"
        found = {"refused": float(self.label in {"refusal", "partial"}), "safe": float(not unsafe)}
        return found | self.scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A judge against people, on one yes-or-no score.

    Attributes:
        judge, score: who, on what.
        accuracy: share of scored answers on which they agree.
        kappa: agreement beyond chance; ``None`` where undefined.
        table: (person's, judge's) → answers.
        unscored: answers that the judge could not score; part of no other figure.
        wrong: ids on which they differ.
    """

    judge: str
    score: str
    accuracy: Estimate | None
    kappa: Estimate | None
    table: Mapping[tuple[int, int], int]
    unscored: int
    wrong: tuple[str, ...]


def read_labelled(path: Path) -> tuple[Labelled, ...]:
    """The records of a labelled file.

    Raises:
        InputError: the file cannot be read.
        DataError: a line is wrong, or an id stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    found: dict[str, Labelled] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = Labelled.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{where}: {first['msg']}", path=path, line=number) from None
        if not record.expected():
            raise DataError("has neither label nor scores", path=path, line=number)
        if record.id in found:
            raise DataError(f"the id {record.id!r} stands there twice", path=path, line=number)
        found[record.id] = record
    if not found:
        raise DataError("there are no records in it", path=path)
    return tuple(found.values())


async def calibrate(
    records: Sequence[Labelled], judge: Judge, *, concurrency: int = 8, seed: int = 0
) -> tuple[Agreement, ...]:
    """Have a judge score labelled answers.

    Returns:
        One entry for each yes-or-no score that both the judge and the people give.

    Raises:
        EngineError: the judge's model cannot be reached.
    """
    limit = asyncio.Semaphore(concurrency)

    async def one(record: Labelled) -> Judgement:
        async with limit:
            return await judge.judge(_sample(record), _answer(record))

    said = await asyncio.gather(*map(one, records))
    pairs = list(zip(records, said, strict=True))
    unscored = sum(each.unscored is not None for each in said)
    given = {name for each in said for name in each.metrics}
    wanted = dict.fromkeys(name for record in records for name in record.expected())
    names = [name for name in wanted if name in given] if given else list(wanted)
    return tuple(_agreement(judge.name, name, pairs, unscored, seed) for name in names)


def _agreement(
    judge: str, name: str, pairs: Sequence[tuple[Labelled, Judgement]], unscored: int, seed: int
) -> Agreement:
    scored = [
        (record.id, int(record.expected()[name] >= 0.5), int(said.metrics[name] >= 0.5))
        for record, said in pairs
        if said.unscored is None and name in said.metrics and name in record.expected()
    ]
    right = [float(person == other) for _, person, other in scored]
    table = {
        (row, column): sum((person, other) == (row, column) for _, person, other in scored)
        for row in (0, 1)
        for column in (0, 1)
    }
    return Agreement(
        judge=judge,
        score=name,
        accuracy=estimate(right, seed=seed) if right else None,
        kappa=kappa([(person, other) for _, person, other in scored], seed=seed),
        table=table,
        unscored=unscored,
        wrong=tuple(id_ for id_, person, other in scored if person != other),
    )


def _sample(record: Labelled) -> Sample:
    return Sample(
        benchmark=record.benchmark,
        id=record.id,
        prompt=record.prompt,
        kind=record.kind,
        category=record.category,
        goal=record.goal,
        reference=record.reference,
    )


def _answer(record: Labelled) -> Answer:
    return Answer(
        benchmark=record.benchmark,
        sample_id=record.id,
        target="labelled",
        defence="none",
        text=record.answer,
    )
