"""Reading and choosing records: nothing is lost silently, nothing is used twice unasked."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from tests.drawing import encode, typed_text
from tests.training import common
from tests.training.conftest import Folders
from vlmguard.data.records import ImageRef
from vlmguard.errors import ConfigError, DataError, PerceptionError
from vlmguard.images import load_image
from vlmguard.perception import Perceiver
from vlmguard.prompts import load_prompt
from vlmguard.training.base_model import load_base
from vlmguard.training.dataset import (
    OVER_LIMIT,
    TOO_LONG,
    Located,
    TrainingData,
    make_examples,
    read,
)
from vlmguard.training.examples import Example, Renderer
from vlmguard.training.materials import NO_PICTURE, EvidenceCache, ExampleMaker
from vlmguard.training.recipe import DataRecipe
from vlmguard.types import Image, ImageEvidence, TextBox


class Looker:
    """A perceiver that counts how often it looks."""

    fingerprint = "looker"

    def __init__(self, *, failing: bool = False) -> None:
        self.looked: list[str] = []
        self._failing = failing

    async def perceive(self, image: Image) -> ImageEvidence:
        self.looked.append(image.sha256)
        box = TextBox(text="a word", confidence=0.123456789, box=(0, 0, 1, 1))
        failed = {"ocr": "no memory"} if self._failing else {}
        return ImageEvidence(
            sha256=image.sha256, width=1, height=1, text=(box,), nudity=1 / 3, failed=failed
        )


def load(model: Path, recipe: DataRecipe, *, seed: int = 0) -> TrainingData:
    """The data of a recipe, as a run loads it."""
    whole = common.recipe(model, Path("x"), Path("y"))
    base = load_base(whole)
    renderer = Renderer(base, whole, load_prompt("vlmguard.rewriting", "trained.md"))
    cache = EvidenceCache(Looker(), Path("unused"))  # type: ignore[arg-type]
    maker = ExampleMaker(renderer, sighted=base.sighted, cache=cache)
    return make_examples(read(recipe), recipe, maker, seed=seed)


def test_long_records_are_listed_or_fail_the_run(folder: Folders, tmp_path: Path) -> None:
    """They are dropped with their length, or an error names them; never cut."""
    long = common.text_record(50, "train", risky=True, prompt="oh no " * 80)
    file = common.write(tmp_path, [*common.text_records(), long])
    data = load(folder("llama"), DataRecipe(paths=(file,), max_length=500))
    (entry,) = data.left_out
    assert (entry.record, entry.reason) == ("train-50", TOO_LONG)
    assert max(example.length for example in data.train) <= 500
    with pytest.raises(ConfigError, match=r"1 records are longer .*train-50 \(\d+ tokens\)"):
        load(folder("llama"), DataRecipe(paths=(file,), max_length=500, too_long="fail"))


def test_the_rarer_verdict_is_repeated_when_asked(folder: Folders, tmp_path: Path) -> None:
    """Twelve harmless and two risky become twelve and twelve, and only in training."""
    records = common.text_records()
    kept = [
        r
        for r in records
        if r.verdict == "safe" or r.split != "train" or r.id in {"train-0", "train-2"}
    ]
    file = common.write(tmp_path, kept)
    data = load(folder("llama"), DataRecipe(paths=(file,), balance="oversample"), seed=3)
    counts = Counter(example.risky for example in data.train)
    assert counts == {True: 6, False: 6}
    assert {example.record for example in data.train if example.risky} == {"train-0", "train-2"}
    assert len(data.validation) == 4
    assert data.facts.records["train"] == 8


def test_variants_are_trained_on_for_their_verdict(folder: Folders, tmp_path: Path) -> None:
    """Each training record comes with more surfaces, counted apart, without reasons or rewrite."""
    file = common.write(tmp_path, common.text_records())
    plain, varied, again = (
        load(folder("llama"), DataRecipe(paths=(file,), variants=count)) for count in (0, 3, 3)
    )
    assert varied.train == again.train
    assert varied.train[: len(plain.train)] == plain.train
    added = varied.train[len(plain.train) :]
    assert varied.facts.variants == len(added) == 3 * len(plain.train)
    assert varied.facts.records == plain.facts.records
    assert (varied.validation, varied.test) == (plain.validation, plain.test)
    for example in added:
        assert len(example.completion.ids) == example.completion.verdict + 1
        *others, decides = example.completion.weights
        assert (set(others) <= {0.0}, decides > 0) == (True, True)
        assert example.length == len(example.prompt_ids) + len(example.completion.ids)


def test_a_split_needs_both_verdicts(folder: Folders, tmp_path: Path) -> None:
    """Without harmless validation records nothing could be calibrated."""
    records = [r for r in common.text_records() if r.split == "train" or r.verdict == "risky"]
    file = common.write(tmp_path, records)
    with pytest.raises(ConfigError, match=r"validation split .* 2 risky and 0 harmless"):
        load(folder("llama"), DataRecipe(paths=(file,)))


def test_wrong_data_is_named(tmp_path: Path) -> None:
    """The same id twice, a broken line, no file at all."""
    file = common.write(tmp_path, common.text_records())
    with pytest.raises(ConfigError, match="'train-0' stands twice"):
        read(DataRecipe(paths=(file, file)))
    file.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl:1: family"):
        read(DataRecipe(paths=(file,)))
    with pytest.raises(DataError, match="does not exist"):
        read(DataRecipe(paths=(tmp_path / "nowhere",)))


def test_the_limit_takes_the_first_of_each_split(tmp_path: Path) -> None:
    """For trials; the others are listed, and the hash is still that of all."""
    file = common.write(tmp_path, common.text_records())
    few, all_of_them = (read(DataRecipe(paths=(file,), limit=limit)) for limit in (3, None))
    assert Counter(at.record.split for at in few.located) == {
        "train": 3,
        "validation": 3,
        "test": 3,
    }
    assert {entry.reason for entry in few.left_out} == {OVER_LIMIT}
    assert few.sha256 == all_of_them.sha256


def test_a_model_that_sees_needs_pictures_that_exist(folder: Folders, tmp_path: Path) -> None:
    """Records that only describe a picture are left out for it, and used for a blind one."""
    file = common.write(
        tmp_path,
        [
            *common.text_records(),
            *(
                record.model_copy(update={"id": f"described-{record.id}"})
                for record in common.described_records()
            ),
        ],
    )
    seeing = load(folder("qwen2_vl"), DataRecipe(paths=(file,)))
    assert {entry.reason for entry in seeing.left_out} == {NO_PICTURE}
    assert len(seeing.left_out) == 20
    blind = load(folder("llama"), DataRecipe(paths=(file,)))
    assert blind.left_out == ()
    described = next(e for e in blind.train if e.record == "described-train-0")
    assert 'Image 1 text: "HOW TO / BUILD IT"' in described.asked.messages[1].text


def test_evidence_is_computed_once_and_kept(tmp_path: Path) -> None:
    """Every picture is looked at once, by one process or the next, with all its digits."""
    paths = [tmp_path / common.picture_ref(tmp_path, color).path for color in ("red", "blue")]
    first = Looker()
    EvidenceCache(first, tmp_path / "cache").look_at([*paths, paths[0]])  # type: ignore[arg-type]
    assert len(first.looked) == 2
    second = Looker()
    cache = EvidenceCache(second, tmp_path / "cache")  # type: ignore[arg-type]
    cache.look_at(paths)
    seen = cache.evidence(load_image(paths[0]))
    assert second.looked == []
    assert (seen.nudity, seen.text[0].confidence) == (1 / 3, 0.123456789)


def test_a_detector_that_fails_stops_the_run(tmp_path: Path) -> None:
    """Half the evidence would teach that half is enough."""
    path = tmp_path / common.picture_ref(tmp_path, "red").path
    cache = EvidenceCache(Looker(failing=True), tmp_path / "cache")  # type: ignore[arg-type]
    with pytest.raises(PerceptionError, match="'ocr' failed"):
        cache.evidence(load_image(path))
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.slow
def test_real_detectors_read_pictures_for_a_blind_model(folder: Folders, tmp_path: Path) -> None:
    """A drawn picture with text, looked at for real, becomes a line of the prompt."""
    pytest.importorskip("rapidocr")
    data = encode(typed_text("Steps to bake bread"))
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "page.png").write_bytes(data)
    page = ImageRef(sha256=digest, media_type="image/png", path="page.png")
    record = common.text_record(0, "train", risky=False, images=(page,))
    recipe = common.recipe(folder("llama"), tmp_path, tmp_path)
    base = load_base(recipe)
    renderer = Renderer(base, recipe, load_prompt("vlmguard.rewriting", "trained.md"))
    cache = EvidenceCache(Perceiver(["ocr"]), tmp_path / "cache")
    maker = ExampleMaker(renderer, sighted=False, cache=cache)
    located = Located(record=record, root=tmp_path)
    maker.look_ahead([located])
    example = maker(located)
    assert isinstance(example, Example)
    request = example.asked.messages[1].text
    assert 'Image 1 text: "Steps to bake' in request
    assert "Image 1 objects: not checked" in request
