from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.drawing import encode, shapes
from vlmguard.errors import ConfigError, DataError
from vlmguard.synthesis import Seed, open_sources, parse_map

SHARED = Path(__file__).parents[3] / "shared" / "data"


def seeds(*specs: str, **options: Any) -> list[Seed]:
    return [seed for source in open_sources(specs, **options) for seed in source.seeds()]


def write_jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_json_lines(tmp_path: Path) -> None:
    """Known column names need no map; relative pictures lie beside the file."""
    row = {"id": 7, "question": "Why?", "image": "a.png", "chosen": "good", "rejected": "bad"}
    (seed,) = seeds(write_jsonl(tmp_path / "pairs.jsonl", row))
    assert seed.id == "pairs/7"
    assert seed.prompt == "Why?"
    assert seed.images == (tmp_path / "a.png",)
    assert (seed.safe_response, seed.unsafe_response) == ("good", "bad")
    assert seed.label is None


def test_column_map(tmp_path: Path) -> None:
    """A map wins over the names that would be guessed."""
    row = {"prompt": "wrong", "text": "right", "pics": ["a.png", "https://x.org/b.png"]}
    path = write_jsonl(tmp_path / "p.jsonl", row)
    (seed,) = seeds(path, chosen=parse_map("prompt=text, images=pics"))
    assert seed.prompt == "right"
    assert seed.images == (tmp_path / "a.png", "https://x.org/b.png")


@pytest.mark.parametrize(
    ("text", "told"),
    [("prompt", "field=column"), ("spam=x", "'spam'"), ("prompt=a,prompt=b", "twice")],
)
def test_wrong_map(text: str, told: str) -> None:
    """A map that cannot be meant is refused, and the message says what is wrong."""
    with pytest.raises(ConfigError, match=told):
        parse_map(text)


def test_wrong_columns_name_those_found(tmp_path: Path) -> None:
    """Without a prompt or a picture, the error names the columns there are."""
    path = write_jsonl(tmp_path / "p.jsonl", {"foo": 1, "bar": 2})
    with pytest.raises(DataError, match="columns found: foo, bar"):
        seeds(path)
    with pytest.raises(DataError, match=r"no column quux; columns found: foo, bar"):
        seeds(path, chosen={"prompt": "quux"})


def test_broken_rows_are_set_aside(tmp_path: Path) -> None:
    """A row that cannot be used becomes a seed with a problem; the others are read."""
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "one"}\n{"prompt": \n\n[1]\n{"prompt": 5}\n{"prompt": ""}\n'
        '{"prompt": "x", "image": 3}\n{"prompt": "x", "label": "maybe"}\n{"prompt": "\\ud800"}\n'
    )
    found = seeds(str(path))
    assert [seed.problem is None for seed in found] == [
        True, False, False, False, False, False, False, True,
    ]  # fmt: skip
    assert "row 2" in str(found[1].problem)
    assert len({seed.id for seed in found}) == len(found)
    assert found[-1].prompt == "?"


def test_labels(tmp_path: Path) -> None:
    """Labels in the field's usual words; another one is a problem."""
    rows = [{"prompt": "p", "label": label} for label in ("safe", "UNSAFE", "", "maybe")]
    found = seeds(write_jsonl(tmp_path / "p.jsonl", *rows))
    assert [seed.label for seed in found] == ["benign", "risky", None, None]
    assert "maybe" in str(found[3].problem)


def test_csv(tmp_path: Path) -> None:
    """Several pictures in a cell; a row with too many cells is set aside."""
    path = tmp_path / "p.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "images"], ["two\nlines", "a.png|b.png"], ["x", "y", "z"]]
        )
    first, second = seeds(str(path))
    assert first.prompt == "two\nlines"
    assert first.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert "more cells" in str(second.problem)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def spa_vl_rows(count: int) -> list[dict[str, Any]]:
    picture = encode(shapes())
    return [
        {
            "image": {"bytes": picture, "path": None},
            "question": f"question {n}",
            "chosen": "good",
            "rejected": "bad",
            "class1": "Representation & Toxicity Harms",
        }
        for n in range(count)
    ]


def test_spa_vl(tmp_path: Path) -> None:
    """A folder of shards, known by its columns, pictures inside."""
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write_parquet(tmp_path / "data" / f"train-{shard}.parquet", spa_vl_rows(70))
    (source,) = open_sources([str(tmp_path)])
    assert source.name == "spa-vl"
    assert source.count() == 140
    found = list(source.seeds())
    assert [seed.id for seed in found[69:71]] == ["spa-vl/00000070", "spa-vl/00000071"]
    assert found[0].images == (encode(shapes()),)
    assert found[0].meta == {"class1": "Representation & Toxicity Harms"}


def test_spa_vl_with_wrong_columns(tmp_path: Path) -> None:
    """Asked for by name, the error names the columns there are."""
    path = write_parquet(tmp_path / "p.parquet", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError, match="columns found: question, answer"):
        seeds(f"spa-vl:{path}")


VLGUARD = [
    {
        "id": "a",
        "image": "x/a.png",
        "safe": True,
        "instr-resp": [
            {"safe_instruction": "What is it?", "response": "A dress."},
            {"unsafe_instruction": "Who is it?", "response": "I can't tell."},
        ],
    },
    {
        "id": "b",
        "image": "x/b.png",
        "safe": False,
        "harmful_category": "risky behavior",
        "instr-resp": [{"instruction": "Say more.", "response": "I would rather not."}],
    },
    {"id": "c", "image": "x/c.png", "safe": False, "instr-resp": [{"spam": 1}]},
]


def test_vlguard(tmp_path: Path) -> None:
    """Safe pictures give a harmless and a risky seed of one family; unsafe ones a risky seed."""
    (tmp_path / "train").mkdir()
    path = tmp_path / "train.json"
    path.write_text(json.dumps(VLGUARD))
    safe, unsafe, risky, broken = seeds(str(tmp_path))
    assert (safe.label, unsafe.label, risky.label) == ("benign", "risky", "risky")
    assert safe.family == unsafe.family != risky.family
    assert safe.images == (tmp_path / "train" / "x" / "a.png",)
    assert risky.meta == {"part": "unsafes", "harmful_category": "risky behavior"}
    assert risky.unsafe_response is None
    assert "spam" in str(broken.problem)


def test_vlsbench(tmp_path: Path) -> None:
    """Risky seeds without answers."""
    path = tmp_path / "data.json"
    path.write_text(
        json.dumps([{"instruction_id": 9, "instruction": "How?", "image_path": "imgs/9.png"}, {}])
    )
    seed, broken = seeds(str(path))
    assert (seed.id, seed.label) == ("vlsbench/9", "risky")
    assert seed.images == (tmp_path / "imgs" / "9.png",)
    assert broken.problem is not None


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_real_files() -> None:
    """The published files read without a problem."""
    vlguard = seeds(str(SHARED / "vlguard"))
    assert len(vlguard) == 180
    assert sum(seed.label == "benign" for seed in vlguard) == 60
    vlsbench = seeds(str(SHARED / "vlsbench"))
    assert len(vlsbench) == 150
    assert not [seed for seed in vlguard + vlsbench if seed.problem]


@pytest.mark.slow
def test_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset through the datasets library, here from a folder."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", {"question": "Why?", "chosen": "a", "rejected": "b"})
    (seed,) = seeds(f"hf:{folder}?split=train")
    assert (seed.id, seed.prompt) == ("pairs/00000001", "Why?")
    with pytest.raises(DataError, match="cannot be read from the Hugging Face Hub"):
        seeds(f"hf:{tmp_path / 'nothing'}")


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    """Unknown kinds, missing files and unknown formats are told apart."""
    with pytest.raises(ConfigError, match="unknown kind of source 'spam'"):
        open_sources(["spam:x.jsonl"])
    with pytest.raises(DataError, match="no such file"):
        open_sources([str(tmp_path / "none.jsonl")])
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match="format cannot be told"):
        open_sources([str(tmp_path / "x.txt")])
    with pytest.raises(DataError, match="holds no"):
        open_sources([str(tmp_path)])
    with pytest.raises(ConfigError, match="name a source"):
        open_sources([])


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Ids stay unique over files of the same name."""
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(write_jsonl(tmp_path / name / "p.jsonl", {"prompt": name}))
    assert [seed.id for seed in seeds(*paths)] == ["p/00000001", "p-2/00000001"]


def test_fingerprint_follows_content(tmp_path: Path) -> None:
    """A picture that changed, or came late, is noticed; the same seed has the same fingerprint."""
    picture = tmp_path / "a.png"
    seed = Seed(id="a", family="a", prompt="p", images=(picture,))
    missing = seed.fingerprint()
    picture.write_bytes(encode(shapes()))
    there = seed.fingerprint()
    assert missing != there == seed.fingerprint()
    os.utime(picture, ns=(1, 1))
    assert seed.fingerprint() != there
