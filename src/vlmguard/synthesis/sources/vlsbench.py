"""VLSBench (Foreshhh/vlsbench): ``data.json``; the risk is in the picture, not in the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.tables import JsonArray, clean
from vlmguard.synthesis.seeds import Seed

KEYS = ("instruction_id", "instruction", "image_path")
_META = ("category", "sub_category", "image_description", "safety_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class VLSBench:
    """Every request is risky; no answers are given, so they have to be sampled.

    Attributes:
        name: of the source.
        path: the JSON file.
        image_folder: what ``image_path`` is relative to.
        licence: goes into the seeds.
    """

    name: str
    path: Path
    image_folder: Path
    licence: str = ""

    def count(self) -> int | None:
        """Takes a full read, so it is not told."""
        return None

    def seeds(self) -> Iterator[Seed]:
        """One seed an item.

        Raises:
            DataError: the file has another form.
        """
        table = JsonArray(self.path)
        table.require(KEYS, form="VLSBench")
        for row in table.rows():
            item = row.values
            seed_id = clean(f"{self.name}/{item.get('instruction_id', f'{row.number:08}')}")
            prompt, image = item.get("instruction"), item.get("image_path")
            if not isinstance(prompt, str) or not isinstance(image, str):
                problem = row.problem or "'instruction' or 'image_path' is not text"
                yield Seed(id=seed_id, family=seed_id, prompt="", source=self.name,
                           problem=f"row {row.number}: {problem}")  # fmt: skip
                continue
            yield Seed(
                id=seed_id,
                family=seed_id,
                prompt=clean(prompt),
                images=(self.image_folder / clean(image),),
                label="risky",
                source=self.name,
                licence=self.licence,
                meta={key: item[key] for key in _META if isinstance(item.get(key), str)},
            )
