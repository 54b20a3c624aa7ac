"""Limits, random choice, checks and hashes."""

from __future__ import annotations

from pathlib import Path

from tests.evals.benchmarks.layouts import write_csv, write_lines, write_picture
from vlmguard.evals.benchmarks import open_benchmark


def many(folder: Path, count: int) -> Path:
    """A file of harmless items."""
    items = [{"id": f"i{number}", "prompt": "x", "kind": "safe"} for number in range(count)]
    return write_lines(folder / "items.jsonl", items)


def ids(spec: str) -> list[str]:
    return [sample.id for sample in open_benchmark(spec).samples()]


def test_limit_and_sample(tmp_path: Path) -> None:
    """The first, or a random choice in the benchmark's order that depends on the seed."""
    spec = f"custom:{many(tmp_path, 50)}"
    everything = ids(spec)
    assert ids(f"{spec}?limit=3") == everything[:3]
    chosen = ids(f"{spec}?sample=10&seed=1")
    assert chosen == [each for each in everything if each in chosen]
    assert len(chosen) == 10
    assert ids(f"{spec}?sample=10&seed=1") == chosen
    assert ids(f"{spec}?sample=10&seed=2") != chosen
    assert ids(f"{spec}?sample=10&seed=1&limit=4") == chosen[:4]
    assert ids(f"{spec}?sample=99") == everything


def test_a_grown_set_keeps_most_of_its_choice(tmp_path: Path) -> None:
    """A choice rests on the ids, not on positions."""
    small = set(ids(f"custom:{many(tmp_path, 50)}?sample=20"))
    grown = set(ids(f"custom:{many(tmp_path, 60)}?sample=20"))
    assert len(small & grown) >= 14


def test_samples_are_lazy(tmp_path: Path) -> None:
    """The first samples come although a later line is broken; the check finds it."""
    path = many(tmp_path, 2)
    path.write_text(path.read_text() + "{broken\n")
    benchmark = open_benchmark(f"custom:{path}?limit=2")
    assert len(list(benchmark.samples())) == 2
    check = open_benchmark(f"custom:{path}").check()
    assert check.problem is not None
    assert "items.jsonl:3: not valid JSON" in check.problem
    assert check.fingerprint is None
    assert not check.ready


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    """Answers are stored by id, so the check finds them."""
    item = {"id": 1, "prompt": "x", "kind": "safe"}
    path = write_lines(tmp_path / "x.jsonl", [item, item])
    check = open_benchmark(f"custom:{path}").check()
    assert check.problem == "the id '1' stands twice"


def test_an_empty_set_is_not_ready(tmp_path: Path) -> None:
    """There is nothing to run."""
    (tmp_path / "x.jsonl").write_text("\n")
    check = open_benchmark(f"custom:{tmp_path / 'x.jsonl'}").check()
    assert check.problem is None
    assert not check.ready


def test_fingerprint_changes_with_text_picture_and_choice(tmp_path: Path) -> None:
    """It is the same for the same files, and another after any change."""
    picture = write_picture(tmp_path / "1.png")
    path = write_csv(tmp_path / "x.csv", [{"prompt": "x", "kind": "safe", "image": "1.png"}])
    seen = [open_benchmark(f"custom:{path}").fingerprint()]
    assert open_benchmark(f"custom:{path}").check().fingerprint == seen[0]
    picture.write_bytes(picture.read_bytes() + b"\0")
    seen.append(open_benchmark(f"custom:{path}").fingerprint())
    picture.unlink()
    seen.append(open_benchmark(f"custom:{path}").fingerprint())
    write_csv(path, [{"prompt": "y", "kind": "safe", "image": "1.png"}])
    seen.append(open_benchmark(f"custom:{path}").fingerprint())
    assert len(set(seen)) == 4
    assert all(len(each) == 64 for each in seen)
    spec = f"custom:{many(tmp_path, 9)}"
    whole, some = (open_benchmark(spec + part).fingerprint() for part in ("", "?limit=3"))
    assert whole != some


def test_check_as_json(tmp_path: Path) -> None:
    """Counts, kinds and readiness as plain values."""
    told = open_benchmark(f"custom:{many(tmp_path, 2)}").check().to_json()
    assert told["parts"] == [{"subset": "", "found": 2, "published": None}]
    assert told["kinds"] == {"harmless": 2}
    assert told["ready"] is True
