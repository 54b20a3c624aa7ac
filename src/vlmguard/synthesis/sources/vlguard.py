"""VLGuard (ys-zong/VLGuard): ``train.json``, pictures that are safe or not, with instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmguard.data.tables import JsonArray, Row, clean
from vlmguard.synthesis.seeds import Label, Seed

_INSTRUCTIONS: Mapping[str, tuple[str, Label]] = {
    "safe_instruction": ("safe_safes", "benign"),
    "unsafe_instruction": ("safe_unsafes", "risky"),
    "instruction": ("unsafes", "risky"),
}
"""Key → the benchmark's name for that part, and its label. All answers given are safe ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VLGuard:
    """A safe picture gives two seeds (``safe_safes``, ``safe_unsafes``), an unsafe one gives one.

    Attributes:
        name: of the source.
        path: the JSON file; pictures lie in ``image_folder``.
        image_folder: what the items' ``image`` is relative to.
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
        """One or two seeds an item.

        Raises:
            DataError: the file has another form.
        """
        table = JsonArray(self.path)
        table.require(("id", "image", "instr-resp"), form="VLGuard")
        for row in table.rows():
            yield from self._item(row)

    def _item(self, row: Row) -> Iterator[Seed]:
        item = row.values
        base = clean(f"{self.name}/{item.get('id', f'{row.number:08}')}")
        pairs = item.get("instr-resp")
        image = item.get("image")
        if not isinstance(pairs, list) or not pairs or not isinstance(image, str):
            problem = row.problem or "'image' is not a path, or 'instr-resp' not a list"
            yield Seed(id=base, family=base, prompt="", source=self.name,
                       problem=f"row {row.number}: {problem}")  # fmt: skip
            return
        for number, pair in enumerate(pairs):
            yield self._pair(item, pair, base=base, number=number)

    def _pair(self, item: Mapping[str, Any], pair: Any, *, base: str, number: int) -> Seed:
        known = pair if isinstance(pair, Mapping) else {}
        key = next((key for key in _INSTRUCTIONS if isinstance(known.get(key), str)), None)
        response = known.get("response")
        if key is None or not isinstance(response, str):
            return Seed(
                id=f"{base}/{number}",
                family=base,
                prompt="",
                source=self.name,
                problem=f"'instr-resp' {number} of {base} has keys {', '.join(map(str, known))}; "
                f"one of {', '.join(_INSTRUCTIONS)} and 'response' are needed",
            )
        part, label = _INSTRUCTIONS[key]
        meta = {
            field: item[field]
            for field in ("harmful_category", "harmful_subcategory")
            if isinstance(item.get(field), str)
        }
        return Seed(
            id=f"{base}/{part}",
            family=base,
            prompt=clean(known[key]),
            images=(self.image_folder / clean(item["image"]),),
            safe_response=clean(response) or None,
            label=label,
            source=self.name,
            licence=self.licence,
            meta={"part": part, **meta},
        )
