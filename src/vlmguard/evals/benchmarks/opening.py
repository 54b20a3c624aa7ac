"""From what a user names to a benchmark.

::

    figstep                                        all of it
    figstep?tiny                                   a variant's own option
    mm-safetybench-typo?tiny&scenarios=01-07+09    several options
    vlguard?subset=unsafes+safe_unsafes            parts of it
    xstest?limit=20   xstest?sample=50&seed=1      the first, or a random choice
    xstest?hub   xstest?hub=my/copy                from the Hugging Face Hub
    figstep?path=/somewhere/FigStep                a folder outside the data directory
    custom:photos                                  items of one's own: a folder or a file
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import platformdirs

from vlmguard.data.hub import hub_folder
from vlmguard.engines import EngineSpec
from vlmguard.errors import ConfigError, UnknownName
from vlmguard.evals.benchmarks import (
    custom,
    figstep,
    mm_safetybench,
    mm_vet,
    mssbench,
    siuo,
    spa_vl,
    strongreject,
    vlguard,
    vlsbench,
    xstest,
)
from vlmguard.evals.benchmarks.base import Facts, Loader, Place
from vlmguard.evals.benchmarks.opened import OpenedBenchmark

_LOADERS: tuple[tuple[Facts, Callable[[Place], Loader]], ...] = (
    (figstep.FACTS, figstep.FigStep),
    (mm_safetybench.SD_FACTS, mm_safetybench.MMSafetyBench),
    (mm_safetybench.SD_TYPO_FACTS, mm_safetybench.MMSafetyBench),
    (mm_safetybench.TYPO_FACTS, mm_safetybench.MMSafetyBench),
    (siuo.FACTS, siuo.Siuo),
    (siuo.MCQA_FACTS, siuo.SiuoMcqa),
    (vlguard.FACTS, vlguard.VLGuard),
    (vlsbench.FACTS, vlsbench.VLSBench),
    (vlsbench.DESCRIBED_FACTS, vlsbench.VLSBench),
    (spa_vl.FACTS, spa_vl.SpaVL),
    (mssbench.FACTS, mssbench.MSSBench),
    (xstest.FACTS, xstest.XSTest),
    (strongreject.FACTS, strongreject.StrongReject),
    (mm_vet.FACTS, mm_vet.MMVet),
)
BENCHMARKS: Mapping[str, Facts] = {facts.name: facts for facts, _ in _LOADERS}
"""Name → what is published about it, in the order of lists; `custom` aside."""

_COMMON: Mapping[str, type] = {
    "path": str,
    "subset": str,
    "limit": int,
    "sample": int,
    "seed": int,
}


def data_dir(data: Path | None = None) -> Path:
    """The directory that holds the benchmarks, one folder each.

    ``data``, else ``$VLMGUARD_BENCHMARKS``, else ``benchmarks`` in ``$VLMGUARD_HOME`` or in the
    user's cache folder.
    """
    if data is not None:
        return data
    if named := os.environ.get("VLMGUARD_BENCHMARKS"):
        return Path(named).expanduser()
    home = os.environ.get("VLMGUARD_HOME")
    base = Path(home).expanduser() if home else platformdirs.user_cache_path("vlmguard")
    return base / "benchmarks"


def open_benchmark(spec: str, data: Path | None = None) -> OpenedBenchmark:
    """Open a benchmark. Nothing is read yet, but from the hub, where files are downloaded.

    Args:
        spec: a name with options, see above.
        data: the directory of the benchmarks; see `data_dir`.

    Raises:
        UnknownName: no benchmark of that name; lists those there are.
        ConfigError: an unknown option, or a wrong value.
        MissingExtra: ``?hub`` without the library for it.
        DataError: ``?hub``, and the dataset cannot be had.
    """
    parsed = _parse(spec)
    where = data_dir(data)
    if parsed.scheme == custom.FACTS.name:
        return _open_custom(spec, parsed, where)
    found = next((pair for pair in _LOADERS if pair[0].name == parsed.scheme), None)
    if found is None or parsed.value:
        raise UnknownName(_unknown(str(parsed) if found else parsed.scheme))
    facts, make = found
    if "scenarios" in parsed.options and "scenarios" in facts.options:
        mm_safetybench.scenario_numbers(parsed.options["scenarios"])  # refused here, not later
    hub = {"hub": str} if facts.hub else {}
    options = parsed.take(**_COMMON, **facts.options, **hub)
    loader = make(_place(facts, where, options))
    return _narrowed(spec, facts.name, _as_asked(facts, options), loader, options)


def _as_asked(facts: Facts, options: Mapping[str, object]) -> Facts:
    """With the published counts of the part that the variant's own options leave."""
    if "scenarios" in options:
        return replace(facts, counts={"": None})
    return replace(facts, counts={"": facts.tiny}) if options.get("tiny") else facts


def _parse(spec: str) -> EngineSpec:
    """A spec whose options may stand without a value: ``?tiny`` is ``?tiny=true``."""
    head, mark, tail = spec.strip().partition("?")
    scheme, _, value = head.partition(":")
    if not scheme:
        raise ConfigError(f"empty benchmark {spec!r}; try figstep, or custom:PATH")
    pairs = [part if "=" in part else f"{part}=true" for part in tail.split("&") if part]
    try:
        options = dict(parse_qsl("&".join(pairs), strict_parsing=True)) if mark and pairs else {}
    except ValueError:
        raise ConfigError(
            f"benchmark {spec!r}: options after '?' read name or name=value, joined by '&'"
        ) from None
    return EngineSpec(scheme=scheme, value=value, options=options)


def _unknown(name: str) -> str:
    names = [*BENCHMARKS, "custom:PATH"]
    near = [known for known in names if known.startswith(name)] or difflib.get_close_matches(
        name, names, n=3
    )
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown benchmark {name!r}; {meant}known: {', '.join(names)}"


def _place(facts: Facts, data: Path, options: Mapping[str, object]) -> Place:
    own = {name: options[name] for name in facts.options if name in options}
    hub = options.get("hub")
    dataset = facts.hub if hub == "true" else None if hub is None else str(hub)
    if dataset and not facts.hub_rows:
        return Place(folders=(hub_folder(dataset),), data=data, facts=facts, options=own)
    path = options.get("path")
    folders = (Path(str(path)).expanduser(),) if path else _folders(facts, data)
    return Place(folders=folders, data=data, facts=facts, hub=dataset, options=own)


def _folders(facts: Facts, data: Path) -> tuple[Path, ...]:
    """The benchmark's folders in the data directory, or that directory if it is one itself."""
    wanted = {_plain(name) for name in facts.folders}
    if not data.is_dir():
        return ()
    inside = sorted(
        path for path in data.iterdir() if _plain(path.name) in wanted and path.is_dir()
    )
    return tuple(inside) or ((data,) if _plain(data.resolve().name) in wanted else ())


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _open_custom(spec: str, parsed: EngineSpec, data: Path) -> OpenedBenchmark:
    options = parsed.take(**_COMMON, **custom.FACTS.options)
    named = str(options.get("path") or parsed.value)
    if not named:
        raise ConfigError("custom: name a folder or a file of items, e.g. custom:my/items.jsonl")
    path = Path(named).expanduser()
    if not path.exists() and (data / path).exists():
        path = data / path
    if "kind" in options:
        custom.known_kind(str(options["kind"]))
    own = {name: options[name] for name in custom.FACTS.options if name in options}
    name = f"custom-{_slug(path)}"
    place = Place(folders=(path,), data=data, facts=custom.FACTS, options=own)
    loader = custom.Custom(place=place, name=name)
    return _narrowed(spec, name, custom.FACTS, loader, options)


def _slug(path: Path) -> str:
    """A file of a folder is named after it, unless its own name tells more."""
    absolute = path.absolute()
    named = absolute.parent if absolute.stem == "items" and absolute.suffix else absolute
    stem = named.stem if named == absolute and absolute.is_file() else named.name
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in stem)


def _narrowed(
    spec: str, name: str, facts: Facts, loader: Loader, options: Mapping[str, object]
) -> OpenedBenchmark:
    for key in ("limit", "sample"):
        value = options.get(key)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{spec}: {key}={value} leaves nothing; it is at least 1")
    asked = str(options.get("subset", "")).replace(",", " ").split()
    if facts.counts and (wrong := sorted(set(asked) - facts.counts.keys())):
        known = ", ".join(filter(None, facts.counts)) or "none"
        raise ConfigError(f"{spec}: unknown subset {', '.join(wrong)}; known subsets: {known}")
    limit, sample, seed = (options.get(key) for key in ("limit", "sample", "seed"))
    return OpenedBenchmark(
        spec=spec.strip(),
        name=name,
        facts=facts,
        loader=loader,
        subsets=frozenset(asked),
        limit=limit if isinstance(limit, int) else None,
        sample=sample if isinstance(sample, int) else None,
        seed=seed if isinstance(seed, int) else 0,
    )
