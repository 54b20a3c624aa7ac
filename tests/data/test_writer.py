"""The dataset folder: what is written, when it counts as whole, and that bytes repeat."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from tests.drawing import encode, typed_text
from vlmguard.data import (
    CardFacts,
    DatasetWriter,
    Evidence,
    ModelFacts,
    PromptFacts,
    RiskFeature,
    SourceFacts,
    StageFacts,
    TrainingRecord,
    Turn,
    Verification,
    image_ref,
    read_records,
    split_of,
)
from vlmguard.errors import DataError
from vlmguard.types import Image

pytest.importorskip("pyarrow")

CARD = CardFacts(
    title="Own pairs | a test",
    summary="Pairs that a test wrote.",
    licence="apache-2.0",
    sources=(SourceFacts(name="own", licence="Apache-2.0"),),
    models=(ModelFacts(role="reasoner", name="scripted"),),
    prompts=(PromptFacts(stage="causal", sha256="ab" * 32),),
    stages=(StageFacts(stage="verify", accepted=3, rejected=1),),
    notes=("Written by hand.",),
)


def picture(text: str) -> Image:
    return Image(data=encode(typed_text(text)), media_type="image/png", source=text)


def risky(number: int, **more: object) -> TrainingRecord:
    family = f"family-{number}"
    return TrainingRecord.model_validate(
        {
            "id": f"{family}/1",
            "family": family,
            "split": split_of(family),
            "prompt": "Fill in the list.",
            "verdict": "risky",
            "category": "violence",
            "textual": "Asks for steps.",
            "visual": "The list is about a bomb.",
            "multimodal": "Together they ask for a bomb.",
            "rewrite": "Do not explain bombs. Say whom to tell about one.",
            "source": "own",
            "licence": "Apache-2.0",
            **more,
        }
    )


def full(number: int) -> TrainingRecord:
    """A record in which every field says something."""
    return risky(
        number,
        evidence=(Evidence(text=("1.", "2. “ü”"), objects=(("menu", 0.25),), nudity=0.5),),
        earlier=(Turn(role="user", text="Hello"),),
        features=(RiskFeature(feature="steps", span="Take a pipe", harm="injury"),),
        triggers=("bomb",),
        severity=5,
        safe_response="No.",
        unsafe_response="Take a pipe …",
        verification=Verification(
            safety_before=1, safety_after=9.5, helpfulness_before=3, helpfulness_after=8
        ),
        meta={"reasoner": {"model": "scripted"}, "tokens": 12},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(folder: Path, records: list[TrainingRecord], *, shard_records: int = 2000) -> None:
    writer = DatasetWriter(folder, shard_records=shard_records)
    for record in records:
        writer.add(record, [picture(record.id)])
    writer.finish(CARD)


def test_every_field_comes_back(tmp_path: Path) -> None:
    """A record with every field set is read as it was written, but for its picture's place."""
    record = full(1)
    write(tmp_path, [record])
    expected = record.model_copy(update={"images": (image_ref(picture(record.id)),)})
    assert list(read_records(tmp_path)) == [expected]


def test_same_records_same_bytes(tmp_path: Path) -> None:
    """Two runs over the same records give the same files, byte for byte."""
    records = [full(number) for number in range(5)]
    write(tmp_path / "a", records, shard_records=2)
    write(tmp_path / "b", records, shard_records=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_shards_by_split(tmp_path: Path) -> None:
    """Shards hold one split each, are numbered within it, and are listed with their hashes."""
    records = [risky(number, split="train" if number else "test") for number in range(6)]
    write(tmp_path, records, shard_records=2)
    index = json.loads((tmp_path / "dataset.json").read_text())
    assert index["records"] == 6
    assert [(shard["path"], shard["records"]) for shard in index["shards"]] == [
        ("data/train-00000-of-00003.parquet", 2),
        ("data/train-00001-of-00003.parquet", 2),
        ("data/train-00002-of-00003.parquet", 1),
        ("data/test-00000-of-00001.parquet", 1),
    ]
    for shard in index["shards"]:
        data = (tmp_path / shard["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"]


def test_unfinished_run_leaves_the_old_dataset(tmp_path: Path) -> None:
    """A run that ends before `finish` changes no file of the dataset that was there."""
    write(tmp_path, [risky(1), risky(2)])
    before = files(tmp_path)
    writer = DatasetWriter(tmp_path, shard_records=1)
    writer.add(risky(3), [picture("new")])
    after = files(tmp_path)
    assert before.items() <= after.items()
    write(tmp_path, [risky(3)])
    shards = json.loads((tmp_path / "dataset.json").read_text())["shards"]
    assert sum(shard["records"] for shard in shards) == 1
    assert not (tmp_path / ".unfinished").exists()
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_damaged_picture_is_written_anew(tmp_path: Path) -> None:
    """A picture that a crash cut short is replaced when its record comes again."""
    writer = DatasetWriter(tmp_path)
    shown = picture("x")
    stored = tmp_path / image_ref(shown).path
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"")
    writer.add(risky(1), [shown])
    assert stored.read_bytes() == shown.data


def test_card(tmp_path: Path) -> None:
    """The card has front matter that YAML reads, and tells sources, models, rates and counts."""
    write(tmp_path, [risky(1), risky(2)])
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["license"] == "apache-2.0"
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
    assert "# Own pairs \\| a test" in body
    assert "| reasoner | scripted |" in body
    assert "| verify | 3 | 1 | 75.0% |" in body
    assert "| violence | 2 | 100.0% |" in body


def test_pictures_must_agree(tmp_path: Path) -> None:
    """A record that names other pictures than it came with, or absent ones, is refused."""
    writer = DatasetWriter(tmp_path)
    named = risky(1, images=(image_ref(picture("a")),))
    with pytest.raises(ValueError, match="other pictures"):
        writer.add(named, [picture("b")])
    with pytest.raises(ValueError, match="not in"):
        writer.add(named)
    writer.add(named, [picture("a")])
    writer.add(risky(1, id="again", images=named.images))


def test_finished_writer_takes_no_more(tmp_path: Path) -> None:
    """Records after `finish` are refused instead of lost."""
    writer = DatasetWriter(tmp_path)
    writer.finish(CARD)
    with pytest.raises(ValueError, match="finished"):
        writer.add(risky(1))


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    """A folder that cannot be made is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        DatasetWriter(tmp_path / "file" / "out")


def test_meta_must_be_json(tmp_path: Path) -> None:
    """Meta that JSON does not know names the record."""
    writer = DatasetWriter(tmp_path, shard_records=1)
    with pytest.raises(ValueError, match="family-1/1"):
        writer.add(risky(1, meta={"when": object()}))
