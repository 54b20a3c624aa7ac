"""Files: the JSON form and back, and how they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evals.report.material import evil_results, results
from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.collect import write_results
from vlmguard.evals.report import islands, load_results, parse_formats, save_results, write_report
from vlmguard.evals.report.thumbnails import SIDE, Thumbnail, small_copy, thumbnail
from vlmguard.evals.types import Results
from vlmguard.types import Image


def plain(found: Results) -> Results:
    """Without pictures, which are saved as small copies."""
    views = (replace(view, sample=replace(view.sample, pictures=())) for view in found.views)
    return replace(found, views=tuple(views))


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    """All but the size of the pictures survives, and saving again changes nothing."""
    path = tmp_path / "results.json"
    save_results(results(), path)
    found = load_results(path)
    assert plain(found) == plain(results())
    picture = found.views[0].sample.pictures[0].load()
    assert picture.media_type == "image/webp"
    assert thumbnail(found.views[0].sample.pictures[0]).image == picture
    again = tmp_path / "again.json"
    save_results(found, again)
    assert again.read_bytes() == path.read_bytes()


def test_odd_results_come_back(tmp_path: Path) -> None:
    """Missing pictures stay missing and say why; lone surrogates and infinities do no harm."""
    save_results(evil_results(), tmp_path / "results.json")
    sample = load_results(tmp_path / "results.json").views[0].sample
    with pytest.raises(DataError, match="the picture is missing"):
        sample.pictures[0].load()
    assert sample.reference == evil_results().views[0].sample.reference


def test_a_runs_own_file_is_read(tmp_path: Path) -> None:
    """``results.json`` of a run is the same form without samples."""
    write_results(tmp_path, results())
    found = load_results(tmp_path / "results.json")
    assert found == replace(results(), views=())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no results"),
        ("[]", "no results"),
        ('{"cells": [{"target": 1}]}', r"cells\.0"),
        (
            json.dumps(
                {
                    "cells": [],
                    "views": [
                        {
                            "sample": {
                                "benchmark": "x",
                                "id": "1",
                                "prompt": "",
                                "kind": "harmless",
                                "pictures": [{"data_url": "/etc/passwd"}],
                            }
                        }
                    ],
                }
            ),
            "data_url",
        ),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, content: str, told: str) -> None:
    """What is wrong is named; a file of others' cannot name a file of ours as a picture."""
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=told):
        load_results(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_results(tmp_path / "gone.json")


def test_formats_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    """Known names, each once, in order; an unknown one writes nothing."""
    assert parse_formats("md, html,markdown,latex") == ("md", "html", "tex")
    with pytest.raises(ConfigError, match=r"'pdf'.*known: html, md, csv, tex, json"):
        write_report(results(), tmp_path / "out", ["md", "pdf"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no format"):
        parse_formats(" ,")
    paths = write_report(results(2), tmp_path / "new" / "out", ["csv", "tex"])
    assert [path.name for path in paths] == ["report.csv", "report.tex"]
    assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == [
        "report.csv",
        "report.tex",
    ]


def test_a_picture_of_many_samples_is_scaled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known by the original's bytes, and what cannot be shown keeps its reason."""
    scaled: list[Image] = []

    def count(image: Image) -> Thumbnail:
        scaled.append(image)
        return small_copy(image)

    monkeypatch.setattr(islands, "small_copy", count)
    pictures = islands.Pictures()
    views = (*results().views, *evil_results().views)
    found = [pictures.add(each) for _ in range(2) for v in views for each in v.sample.pictures]
    assert len(scaled) == 3
    assert found[:4] == [0, 1, 0, 1]
    assert found[6:8] == found[14:]
    assert all("cannot be shown" in str(why) for why in found[6:8])


def test_thumbnails_are_small() -> None:
    """The longer side is at most `SIDE`; what is no picture says so."""
    small = thumbnail(results().views[0].sample.pictures[0])
    assert small.image is not None
    assert len(small.image.data) < 20_000
    assert SIDE <= 512
    broken = thumbnail(evil_results().views[0].sample.pictures[1])
    assert broken == Thumbnail(missing=broken.missing)
    assert "cannot be shown" in broken.missing
