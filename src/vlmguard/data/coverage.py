"""How evenly an authored set covers risks, carriers, styles and languages, and what is required.

``coverage.yaml`` beside the data::

    minimum:              # records with that value
      records: 1500
      language: {en: 1000, zh: 15}
    cells:                # every cell of a table of categories by carrier or style
      carrier: {risky: 2, harmless: 2, except: {prompt: {hate: {risky: 1}}}}

A harmless record has no category; it counts for those of its family's risky records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmguard.data.found import problem_of
from vlmguard.data.records import TrainingRecord
from vlmguard.errors import DataError
from vlmguard.rewriting.policy import CATEGORY_NAMES

Facet = Literal["carrier", "style", "language"]
FACETS: tuple[Facet, ...] = ("carrier", "style", "language")
_Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Minimum(_Model):
    records: _Count = 0
    family: _Count = 0
    carrier: dict[str, _Count] = {}
    style: dict[str, _Count] = {}
    language: dict[str, _Count] = {}
    category: dict[str, _Count] = {}


class _Cell(_Model):
    risky: _Count = 0
    harmless: _Count = 0


class _Cells(_Cell):
    exceptions: Annotated[dict[str, dict[str, _Cell]], Field(alias="except")] = {}

    def wanted(self, value: str, category: str) -> _Cell:
        return self.exceptions.get(value, {}).get(category, self)


class Requirements(_Model):
    """What ``coverage.yaml`` asks for."""

    minimum: _Minimum = _Minimum()
    cells: dict[Facet, _Cells] = {}


def load_requirements(path: Path) -> Requirements:
    """Read ``coverage.yaml``.

    Raises:
        DataError: not YAML, an unknown key, or a count that is none.
    """
    try:
        return Requirements.model_validate(yaml.safe_load(path.read_text("utf-8")) or {})
    except ValidationError as error:
        raise DataError(problem_of(error), path=path) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


@dataclass(slots=True)
class _Family:
    """Facet values of its records, and the categories of the risky ones."""

    categories: set[str] = field(default_factory=set)
    harmless: list[dict[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Coverage:
    """Counts of an authored set. Memory grows with the set: people write it, so it is small."""

    _risky: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _families: dict[str, _Family] = field(default_factory=lambda: defaultdict(_Family))
    _values: Counter[tuple[str, str]] = field(default_factory=Counter)
    records: int = 0

    def add(self, record: TrainingRecord) -> None:
        """Count one record."""
        self.records += 1
        values: dict[str, str] = {
            facet: str(record.meta[facet]) for facet in FACETS if facet in record.meta
        }
        for item in values.items():
            self._values[item] += 1
        family = self._families[record.family]
        if record.category is None:
            family.harmless.append(values)
        else:
            self._values["category", record.category] += 1
            family.categories.add(record.category)
            for facet, value in values.items():
                self._risky[facet, value, record.category] += 1

    def _harmless(self) -> Counter[tuple[str, str, str]]:
        counts: Counter[tuple[str, str, str]] = Counter()
        for family in self._families.values():
            for category in family.categories:
                for values in family.harmless:
                    for facet, value in values.items():
                        counts[facet, value, category] += 1
        return counts

    def table(self, facet: Facet) -> CoverageTable:
        """Categories by the values of a facet; all categories of the policy have a row."""
        harmless = self._harmless()
        columns = sorted({value for name, value in self._values if name == facet})
        rows = {
            category: tuple(
                Cell(
                    risky=self._risky[facet, value, category],
                    harmless=harmless[facet, value, category],
                )
                for value in columns
            )
            for category in CATEGORY_NAMES
        }
        return CoverageTable(facet=facet, columns=tuple(columns), rows=rows)

    def shortfalls(self, wanted: Requirements) -> Iterator[str]:
        """What is missing, one sentence each."""
        minimum = wanted.minimum
        for name, there in (("records", self.records), ("family", len(self._families))):
            if there < (asked := getattr(minimum, name)):
                yield f"{there} {'families' if name == 'family' else name}, {asked} are required"
        for facet in (*FACETS, "category"):
            values: dict[str, int] = getattr(minimum, facet)
            for value, asked in values.items():
                if (there := self._values[facet, value]) < asked:
                    yield f"{facet} {value!r} has {there} records, {asked} are required"
        harmless = self._harmless()
        for facet, cells in wanted.cells.items():
            for value in sorted({value for name, value in self._values if name == facet}):
                for category in CATEGORY_NAMES:
                    cell = cells.wanted(value, category)
                    key = (facet, value, category)
                    if self._risky[key] < cell.risky or harmless[key] < cell.harmless:
                        yield (
                            f"{category} by {facet} {value!r} has {self._risky[key]} risky and "
                            f"{harmless[key]} harmless records, {cell.risky} and {cell.harmless} "
                            "are required"
                        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Records of one category and one value of a facet."""

    risky: int
    harmless: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageTable:
    """Categories by the values of a facet."""

    facet: Facet
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]

    def to_json(self) -> dict[str, Any]:
        """Category → value → [risky, harmless]."""
        return {
            category: {
                value: [cell.risky, cell.harmless]
                for value, cell in zip(self.columns, cells, strict=True)
            }
            for category, cells in self.rows.items()
        }
