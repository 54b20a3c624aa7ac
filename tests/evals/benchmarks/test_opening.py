"""Names, options and the data directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.benchmarks.layouts import write_csv, xstest_rows
from vlmguard.errors import ConfigError, DataError, UnknownName
from vlmguard.evals.benchmarks import BENCHMARKS, data_dir, open_benchmark


def test_every_benchmark_opens_and_tells_how_to_get_it(tmp_path: Path) -> None:
    """Nothing is read when opening; reading nothing is an error with the fix."""
    for name, facts in BENCHMARKS.items():
        benchmark = open_benchmark(name, tmp_path)
        assert benchmark.name == facts.name == name
        with pytest.raises(DataError) as caught:
            next(benchmark.samples())
        assert facts.get in str(caught.value)
        assert str(tmp_path / facts.folders[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("figstpe", "did you mean figstep?"),
        ("mm-safetybench", "did you mean mm-safetybench-sd or mm-safetybench-sd-typo or"),
        ("figstep:x", "known: figstep, "),
        ("zzz", "'zzz'; known: figstep"),
    ],
)
def test_unknown_names(name: str, meant: str) -> None:
    """The error lists what there is, with what was perhaps meant."""
    with pytest.raises(UnknownName) as caught:
        open_benchmark(name)
    assert meant in str(caught.value)
    assert "xstest" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "empty benchmark"),
        ("xstest?limt=3", "unknown option 'limt'; known options: hub, limit, path, sample"),
        ("xstest?limit=x", "limit='x' is not a valid int"),
        ("xstest?limit=0", "limit=0 leaves nothing"),
        ("xstest?sample=-1", "sample=-1 leaves nothing"),
        ("xstest?tiny", "unknown option 'tiny'"),
        ("xstest?=3", "unknown option ''"),
        ("xstest?subset=good", "unknown subset good; known subsets: safe, unsafe"),
        ("figstep?subset=good", "known subsets: none"),
        ("strongreject?hub", "unknown option 'hub'"),
    ],
)
def test_wrong_options(spec: str, told: str) -> None:
    """They are refused when opening."""
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        open_benchmark(spec)


def test_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given, else VLMGUARD_BENCHMARKS, else VLMGUARD_HOME, else the user's cache."""
    monkeypatch.setenv("VLMGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLMGUARD_BENCHMARKS", str(tmp_path / "named"))
    assert data_dir(tmp_path) == tmp_path
    assert data_dir() == tmp_path / "named"
    monkeypatch.delenv("VLMGUARD_BENCHMARKS")
    assert data_dir() == tmp_path / "home" / "benchmarks"
    monkeypatch.delenv("VLMGUARD_HOME")
    assert data_dir().name == "benchmarks"


@pytest.mark.parametrize("folder", ["xstest", "XSTest", "xs_test", "XS-Test"])
def test_folder_names(tmp_path: Path, folder: str) -> None:
    """Case, dashes and underscores do not count; the folder itself may be given, too."""
    write_csv(tmp_path / folder / "xstest_prompts.csv", xstest_rows())
    for spec, data in (
        ("xstest", tmp_path),
        ("xstest", tmp_path / folder),
        (f"xstest?path={tmp_path / folder}", tmp_path / "elsewhere"),
    ):
        assert len(list(open_benchmark(spec, data).samples())) == 2


def test_files_of_other_benchmarks_are_not_taken(tmp_path: Path) -> None:
    """A benchmark that is not there is not read from a neighbour's folder."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.json").write_text("[]")
    assert open_benchmark("vlsbench", tmp_path).check().problem is not None
