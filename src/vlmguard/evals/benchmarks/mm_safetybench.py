"""MM-SafetyBench (isXinLiu/MM-SafetyBench): a question whose key phrase is in the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmguard.data.tables import Row, read_json
from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.benchmarks.drawing import typo_picture
from vlmguard.evals.benchmarks.pictures import DrawnPicture
from vlmguard.evals.types import Picture, Sample

ADVICE_SCENARIOS = frozenset({"08", "10", "11", "12", "13"})
"""Political lobbying, legal opinion, financial advice, health consultation, government decision:
the official rubrics want care there, not a refusal."""
_TINY = "TinyVersion_ID_List.json"
_QUESTIONS = ("processed_questions/*.json", "**/processed_questions/*.json")


def _facts(variant: str, shown: str) -> Facts:
    return Facts(
        name=f"mm-safetybench-{variant}",
        title=f"MM-SafetyBench: key phrase in {shown}",
        kinds="harmful, advice",
        scored="attack success rate (judge, six rubrics)",
        counts={"": 1680},
        folders=("mm_safetybench", "MM-SafetyBench"),
        source="https://github.com/isXinLiu/MM-SafetyBench",
        licence="CC BY-NC 4.0",
        get="Clone the repository isXinLiu/MM-SafetyBench and unpack the pictures that its README "
        "links to into imgs/",
        options={"tiny": bool, "scenarios": str},
        tiny=168,
    )


SD_FACTS = _facts("sd", "a generated picture")
SD_TYPO_FACTS = _facts("sd-typo", "a generated picture and typed below it")
TYPO_FACTS = _facts("typo", "a picture as typed text (drawn if missing)")


@dataclass(frozen=True, slots=True)
class MMSafetyBench(Loader):
    """``processed_questions/{NN-Scenario}.json``; pictures in ``imgs/{scenario}/{variant}/``."""

    @property
    def _variant(self) -> str:
        return self.place.facts.name.removeprefix("mm-safetybench-").upper().replace("-", "_")

    def files(self) -> Sequence[Path]:
        """The chosen scenarios' files, and the tiny list where it is used."""
        tiny = [self.place.find(_TINY, f"**/{_TINY}")] if self.place.options.get("tiny") else []
        return (*tiny, *self._scenarios())

    def samples(self) -> Iterator[Sample]:
        """Scenario by scenario, by id, or in the order of the tiny list."""
        tiny = self._tiny_ids()
        for path in self._scenarios():
            questions = read_json(path)
            if not isinstance(questions, Mapping):
                raise DataError("is not an object of questions by id", path=path)
            chosen = sorted(questions, key=_by_number) if tiny is None else tiny.get(path.stem, ())
            for number in chosen:
                if number not in questions:
                    raise DataError(f"has no question {number}, which {_TINY} names", path=path)
                yield self._sample(path, number, questions[number])

    def _sample(self, path: Path, number: str, item: Any) -> Sample:
        if not isinstance(item, Mapping):
            raise DataError(f"question {number} is not an object", path=path)
        row = Row(path=path, number=int(number) if number.isdecimal() else 0, values=item)
        scenario = path.stem
        key = "Rephrased Question(SD)" if self._variant == "SD" else "Rephrased Question"
        return Sample(
            benchmark=self.place.facts.name,
            id=f"{scenario}/{number}",
            prompt=row.text(key),
            kind="advice" if scenario[:2] in ADVICE_SCENARIOS else "harmful",
            pictures=(self._picture(row, scenario, number),),
            category=scenario,
            goal=row.text("Question"),
        )

    def _picture(self, row: Row, scenario: str, number: str) -> Picture:
        name = f"{scenario}/{self._variant}/{number}.jpg"
        file = self.place.picture(row, name, "imgs", "images", "data/imgs")
        if self._variant == "TYPO" and file.path is None:
            return DrawnPicture(text=row.text("Key Phrase"), draw=typo_picture)
        return file

    def _scenarios(self) -> list[Path]:
        found = self.place.find_all(*_QUESTIONS)
        if not found:
            raise self.place.missing("processed_questions/*.json")
        wanted = self.place.options.get("scenarios")
        if wanted is None:
            return found
        numbers = scenario_numbers(str(wanted))
        there = {path.name[:2]: path for path in found}
        if lacking := sorted(numbers - there.keys()):
            raise DataError(
                f"there is no scenario {', '.join(lacking)}; there are {', '.join(sorted(there))}",
                path=found[0].parent,
            )
        return [path for number, path in sorted(there.items()) if number in numbers]

    def _tiny_ids(self) -> dict[str, list[str]] | None:
        if not self.place.options.get("tiny"):
            return None
        path = self.place.find(_TINY, f"**/{_TINY}")
        try:
            return {
                entry["Scenario"]: [str(number) for number in entry["Sampled_ID_List"]]
                for entry in read_json(path)
            }
        except (TypeError, KeyError) as error:
            raise DataError(
                f"is not a list of Scenario and Sampled_ID_List: {error!r}", path=path
            ) from None


def scenario_numbers(text: str) -> set[str]:
    """``"01-07,09"`` as two-digit numbers; ``+`` (a space, in a URL's query) separates, too.

    Raises:
        ConfigError: not of that form.
    """
    found: set[str] = set()
    for part in text.replace(" ", ",").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ConfigError(f"scenarios={text}: it reads like 01-07,09, not {part!r}")
        found |= {f"{number:02}" for number in range(int(first), int(last) + 1)}
    return found


def _by_number(number: str) -> tuple[int, str]:
    return (int(number) if number.isdecimal() else 0, number)
