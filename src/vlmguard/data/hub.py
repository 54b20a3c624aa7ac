"""Datasets of the Hugging Face Hub: row by row through ``datasets``, or as files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmguard.data.tables import Row
from vlmguard.errors import DataError, MissingExtra

_CHECK = (
    "Check the name and the network; of a gated dataset, accept the terms on its page and log in "
    "with `hf auth login`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTable:
    """Rows of one split of a dataset, or of a folder in the hub's layout, streamed.

    Attributes:
        dataset: ``org/name``, or a folder.
        split: e.g. ``"train"``; without one, the only split, or ``test``.
        config: a configuration of the dataset, where it has several.
        revision: a commit or tag; without one, a later run may see other data.
    """

    dataset: str
    split: str | None = None
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
        """One row an example; pictures stay encoded.

        Raises:
            MissingExtra: ``datasets`` is not installed.
            DataError: it cannot be had (no such dataset, gated, no network, …).
        """
        loaded = iter(self._load())
        number = 0
        while True:
            try:
                values = next(loaded)
            except StopIteration:
                return
            except Exception as error:
                raise self._problem(error) from error
            number += 1
            yield Row(path=Path(self.dataset), number=number, values=values)

    def _load(self) -> Any:
        try:
            # By name, since type checkers take a folder `datasets` for it.
            datasets: Any = import_module("datasets")
        except ImportError:
            raise MissingExtra("a dataset of the Hugging Face Hub", "synth") from None
        try:
            loaded = datasets.load_dataset(
                self.dataset,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=True,
            )
            if self.split is None:
                loaded = next(iter(loaded.values())) if len(loaded) == 1 else loaded["test"]
            for name, feature in (loaded.features or {}).items():
                if isinstance(feature, datasets.Image):
                    loaded = loaded.cast_column(name, datasets.Image(decode=False))
        # The library raises everything from ValueError to its HTTP client's own errors.
        except Exception as error:
            raise self._problem(error) from error
        return loaded

    def _problem(self, error: Exception) -> DataError:
        told = f"cannot be read from the Hugging Face Hub: {error}. {_CHECK}"
        return DataError(told, path=Path(self.dataset))


def hub_folder(dataset: str) -> Path:
    """Download a dataset repository whole, files as they are there, into the hub's cache.

    Args:
        dataset: ``org/name``.

    Raises:
        MissingExtra: ``huggingface_hub`` is not installed.
        DataError: it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  # optional
    except ImportError:
        raise MissingExtra("a dataset of the Hugging Face Hub", "synth") from None
    try:
        return Path(snapshot_download(dataset, repo_type="dataset"))
    except Exception as error:
        told = f"cannot be downloaded from the Hugging Face Hub: {error}. {_CHECK}"
        raise DataError(told, path=Path(dataset)) from error
