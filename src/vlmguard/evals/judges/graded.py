"""A sheet as judge: the grades of a sheet that somebody filled in."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlmguard.evals.judges.rubrics import outcome_scores
from vlmguard.evals.judges.sheet import grade_key, read_sheet
from vlmguard.evals.judges.unscored import nothing_to_judge
from vlmguard.evals.types import Answer, Judgement, Sample


class SheetJudge:
    """Looks grades up; answers without one are unscored.

    Args:
        path: a sheet of ``vlmguard judge sheet``.

    Raises:
        InputError: it is not there.
        DataError: it is no sheet, or holds a grade that there is not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._grades = read_sheet(path)
        # Other grades, another judge: what was judged by them is judged again.
        told = "\n".join(f"{key} {each.grade}" for key, each in sorted(self._grades.items()))
        self.name = f"sheet:{path.name}#{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    async def judge(self, sample: Sample, answer: Answer) -> Judgement:
        """Score one answer; the explanation is the person's note."""
        if (why := nothing_to_judge(answer)) is not None:
            return Judgement(judge=self.name, unscored=why)
        found = self._grades.get(grade_key(sample, answer.text))
        if found is None:
            return Judgement(judge=self.name, unscored=f"not graded in {self._path.name}")
        return Judgement(
            judge=self.name,
            metrics=outcome_scores(found.grade),
            explanation=": ".join(part for part in (found.grade, found.note) if part),
        )

    async def aclose(self) -> None:
        """There is nothing to free."""
