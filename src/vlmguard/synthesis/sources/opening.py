"""From what a user names to a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlmguard.data.hub import HubTable
from vlmguard.data.tables import FORMATS, JsonArray, Parquet, open_table
from vlmguard.engines import EngineSpec
from vlmguard.errors import ConfigError, DataError
from vlmguard.synthesis.sources.base import Source
from vlmguard.synthesis.sources.columns import MappedSource
from vlmguard.synthesis.sources.spa_vl import COLUMNS as SPA_VL_COLUMNS
from vlmguard.synthesis.sources.spa_vl import SpaVL
from vlmguard.synthesis.sources.vlguard import VLGuard
from vlmguard.synthesis.sources.vlsbench import KEYS as VLSBENCH_KEYS
from vlmguard.synthesis.sources.vlsbench import VLSBench

KINDS = ("spa-vl", "vlguard", "vlsbench", "jsonl", "json", "csv", "parquet", "hf")
_CSV_IMAGE_SEPARATOR = "|"


def open_sources(
    specs: Sequence[str], *, chosen: Mapping[str, str] | None = None, licence: str = ""
) -> list[Source]:
    """Open the sources that specs name, each under a name of its own.

    Args:
        specs: ``PATH`` (the format is sniffed), ``KIND:PATH``, or
            ``hf:ORG/NAME?split=train&config=…&revision=…``; see `KINDS`.
        chosen: field → column for tables, see `vlmguard.synthesis.sources.columns.parse_map`.
        licence: for seeds that bring none.

    Raises:
        ConfigError: an unknown kind, or no source at all.
        DataError: no such file, or a format that cannot be told.
    """
    if not specs:
        raise ConfigError(f"name a source of seeds; kinds: {', '.join(KINDS)}")
    taken: set[str] = set()
    return [_open(spec, taken, chosen or {}, licence) for spec in specs]


def _open(spec: str, taken: set[str], chosen: Mapping[str, str], licence: str) -> Source:
    head, colon, rest = spec.partition(":")
    kind = head if colon and head in KINDS else None
    if kind == "hf":
        return _open_hub(spec, taken, chosen, licence)
    if kind is None and colon and "/" not in head and not Path(spec).exists():
        raise ConfigError(f"unknown kind of source {head!r} in {spec!r}; kinds: {', '.join(KINDS)}")
    path = Path(rest if kind else spec).expanduser()
    if not path.exists():
        raise DataError("no such file or folder", path=path)
    paths = _files(path, kind)
    kind = kind or _sniff(paths)
    name = _free_name(kind if kind in _OFFICIAL else path.stem, taken)
    if kind in _OFFICIAL:
        return _OFFICIAL[kind](name, paths, licence)
    return MappedSource(
        name=name,
        table=open_table(paths, kind),
        path=paths[0],
        chosen=chosen,
        licence=licence,
        image_separator=_CSV_IMAGE_SEPARATOR if kind == "csv" else None,
    )


def _open_hub(spec: str, taken: set[str], chosen: Mapping[str, str], licence: str) -> Source:
    parsed = EngineSpec.parse(spec)
    if not parsed.value:
        raise ConfigError(f"source {spec!r} names no dataset; it reads hf:ORG/NAME?split=train")
    options = {key: str(value) for key, value in
               parsed.take(split=str, config=str, revision=str).items()}  # fmt: skip
    table = HubTable(
        dataset=parsed.value,
        split=options.get("split", "train"),
        config=options.get("config"),
        revision=options.get("revision"),
    )
    name = _free_name(parsed.value.rstrip("/").rsplit("/", maxsplit=1)[-1], taken)
    return MappedSource(
        name=name, table=table, path=Path(parsed.value) / "_", chosen=chosen, licence=licence
    )


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name


def _files(path: Path, kind: str | None) -> list[Path]:
    """The files that a path stands for, in order."""
    if path.is_file():
        return [path]
    if found := sorted(path.rglob("*.parquet")):
        train = [file for file in found if file.name.startswith("train-")]
        return train or found
    official = {"vlguard": "train.json", "vlsbench": "data.json"}
    for known, name in official.items():
        if kind in {None, known} and (path / name).is_file():
            return [path / name]
    raise DataError(
        "this folder holds no *.parquet, train.json (VLGuard) or data.json (VLSBench); "
        "name the file",
        path=path,
    )


def _sniff(paths: Sequence[Path]) -> str:
    path = paths[0]
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            "the format cannot be told from the name; say KIND:PATH with one of "
            f"{', '.join(KINDS)}",
            path=path,
        )
    if kind == "parquet" and set(SPA_VL_COLUMNS) <= set(Parquet(paths).columns()):
        return "spa-vl"
    if kind == "json":
        keys = set(JsonArray(path).columns())
        if "instr-resp" in keys:
            return "vlguard"
        if set(VLSBENCH_KEYS) <= keys:
            return "vlsbench"
    return kind


def _image_folder(path: Path, candidates: Sequence[str]) -> Path:
    """Where the pictures were unpacked: the first candidate that is there, or the file's folder."""
    folders = (path.parent / name for name in candidates)
    return next((folder for folder in folders if folder.is_dir()), path.parent)


def _vlguard(name: str, paths: Sequence[Path], licence: str) -> Source:
    # The archives unpack to train/… and test/… beside the JSON files.
    folder = _image_folder(paths[0], (paths[0].stem, "images", "image"))
    return VLGuard(name=name, path=paths[0], image_folder=folder, licence=licence)


def _vlsbench(name: str, paths: Sequence[Path], licence: str) -> Source:
    return VLSBench(name=name, path=paths[0], image_folder=paths[0].parent, licence=licence)


def _spa_vl(name: str, paths: Sequence[Path], licence: str) -> Source:
    return SpaVL(name=name, paths=paths, licence=licence)


_OFFICIAL: Mapping[str, Callable[[str, Sequence[Path], str], Source]] = {
    "spa-vl": _spa_vl,
    "vlguard": _vlguard,
    "vlsbench": _vlsbench,
}
