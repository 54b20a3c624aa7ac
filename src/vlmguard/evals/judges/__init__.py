"""Judges, chosen by a spec string.

::

    refusal                     phrases that decline, in seven languages; asks no model
    refusal?phrases=FILE        a benchmark's own list
    openai:gpt-4o               a model, with the rubric of each sample's benchmark
    rubric:openai:gpt-4o        the same
    paper:openai:gpt-4o         a model with one rubric for everything; see `RUBRICS`
    sheet:GRADES.csv            grades given by hand; see `vlmguard.evals.judges.sheet`
    majority:A+B+C              several judges: the majority's scores, and each one's vote
"""

from __future__ import annotations

from pathlib import Path

from vlmguard.engines import ENGINES, EngineSpec, open_engine
from vlmguard.errors import ConfigError, UnknownName
from vlmguard.evals.judges.graded import SheetJudge
from vlmguard.evals.judges.majority import MajorityJudge
from vlmguard.evals.judges.refusal import RefusalJudge, open_refusal
from vlmguard.evals.judges.rubric import RubricJudge
from vlmguard.evals.judges.rubrics import RUBRICS
from vlmguard.evals.types import Judge

__all__ = ["RUBRICS", "MajorityJudge", "RefusalJudge", "RubricJudge", "SheetJudge", "open_judge"]


def open_judge(spec: str) -> Judge:
    """Open the judge that a spec names. Models load with the first answer.

    Raises:
        ConfigError: malformed, or a wrong option.
        UnknownName: nothing of that name; lists what there is.
        MissingExtra: the model needs a package that is not installed.
    """
    scheme, colon, rest = spec.strip().partition(":")
    if scheme == "majority":
        return _open_majority(spec, rest)
    if scheme.partition("?")[0] == "refusal":
        return open_refusal(EngineSpec.parse(spec))
    if scheme == "sheet":
        if not rest:
            raise ConfigError(f"{spec}: names no sheet; write sheet:GRADES.csv")
        return SheetJudge(Path(rest).expanduser())
    if scheme == "rubric" or (colon and scheme in RUBRICS):
        if not rest:
            raise ConfigError(f"{spec}: names no model; write {scheme}:openai:MODEL@URL")
        forced = None if scheme == "rubric" else scheme
        return RubricJudge(open_engine(rest), rubric=forced)
    try:
        engine = open_engine(spec)
    except UnknownName:
        raise UnknownName(
            f"unknown judge {spec!r}; known: refusal, sheet:GRADES.csv, majority:A+B+C, a model "
            f"({', '.join(ENGINES.names())}), or one rubric for all: "
            f"{', '.join(f'{name}:MODEL' for name in RUBRICS)}"
        ) from None
    return RubricJudge(engine)


def _open_majority(spec: str, rest: str) -> MajorityJudge:
    # A comma divides judges on the command line, hence the plus.
    parts = [part.strip() for part in rest.split("," if "," in rest else "+")]
    if len(parts) < 2 or not all(parts):
        raise ConfigError(f"{spec}: name two judges or more: majority:A+B+C")
    if any(part.startswith("majority:") for part in parts):
        raise ConfigError(f"{spec}: a majority is not made of majorities")
    judges = [open_judge(part) for part in parts]
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise ConfigError(f"{spec}: one of the judges stands there twice")
    return MajorityJudge(judges)
