"""A dataset of the Hugging Face Hub, or a folder in its layout, streamed through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmguard.errors import DataError, MissingExtra
from vlmguard.synthesis.sources.base import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTable:
    """Rows of one split.

    Attributes:
        dataset: ``org/name``, or a folder.
        split: e.g. ``"train"``.
        config: a configuration of the dataset, where it has several.
        revision: a commit or tag; without one, a later run may see other data.
    """

    dataset: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    def columns(self) -> tuple[str, ...]:
        """From the dataset's features, or its first row."""
        loaded = self._load()
        return tuple(loaded.column_names or next(iter(loaded), {}))

    def count(self) -> int | None:
        """As the dataset's card says."""
        info = self._load().info.splits or {}
        return info[self.split].num_examples if self.split in info else None

    def rows(self) -> Iterator[Row]:
        """One row an example; pictures stay encoded."""
        for number, values in enumerate(self._load(), start=1):
            yield Row(number=number, values=values)

    def _load(self) -> Any:
        try:
            # By name, since type checkers take a folder `datasets` for it.
            datasets: Any = import_module("datasets")
        except ImportError:
            raise MissingExtra("a Hugging Face dataset as source", "synth") from None
        try:
            loaded = datasets.load_dataset(
                self.dataset,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=True,
            )
        # The library raises everything from ValueError to its HTTP client's own errors.
        except Exception as error:
            raise DataError(
                f"the dataset cannot be opened: {error}", path=Path(self.dataset)
            ) from error
        for name, feature in (loaded.features or {}).items():
            if isinstance(feature, datasets.Image):
                loaded = loaded.cast_column(name, datasets.Image(decode=False))
        return loaded
