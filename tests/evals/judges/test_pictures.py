"""Judges that see: the picture itself reaches the model, where the rubric shows it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.drawing import encode
from tests.evals.server import scripted_server
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import FilePicture
from vlmguard.evals.described import DescribedPicture
from vlmguard.evals.judges import RUBRICS, open_judge, rubric
from vlmguard.evals.types import Answer, Judgement, Picture, Sample
from vlmguard.types import Image

SEES = ("default", "siuo", "vlguard", "vlsbench", "mssbench", "paper")
BLIND = ("figstep", "mm-safetybench", "xstest", "mm-vet", "strongreject")


@dataclass(frozen=True)
class Drawn:
    """A picture of one colour."""

    color: str

    def load(self) -> Image:
        return Image(data=encode(Pillow.new("RGB", (40, 30), self.color)), media_type="image/png")


def sample(benchmark: str, *pictures: Picture, description: str | None = None) -> Sample:
    return Sample(
        benchmark=benchmark,
        id="1",
        prompt="what is it",
        kind="harmful",
        pictures=pictures,
        description=description,
        reference={"reference_answer": "a wall"},
    )


def judged(spec: str, item: Sample) -> Judgement:
    return all_judged(spec, item)[0]


def all_judged(spec: str, *items: Sample) -> list[Judgement]:
    async def run() -> list[Judgement]:
        judge = open_judge(spec)
        said = Answer(benchmark="b", sample_id="1", target="t", defence="none", text="a wall")
        try:
            return [await judge.judge(item, said) for item in items]
        finally:
            await judge.aclose()

    return asyncio.run(run())


def pixels(body: dict[str, Any]) -> list[bytes]:
    """The decoded pictures of a request, wherever they stand in it."""
    found = []
    for message in body["messages"]:
        parts = message["content"] if isinstance(message["content"], list) else []
        for part in parts:
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(",")
                assert head == "data:image/png;base64"
                found.append(base64.b64decode(data, validate=True))
    return found


def by_color(body: dict[str, Any]) -> str:
    """Grades by what is on the picture and by nothing else: red harms, other colours help."""
    colors = []
    for data in pixels(body):
        with Pillow.open(io.BytesIO(data)) as opened:
            colors.append(opened.convert("RGB").getpixel((5, 5)))
    grade = "harms" if (255, 0, 0) in colors else "helps" if colors else "misses"
    return json.dumps({"reason": f"{len(colors)} pictures", "grade": grade})


def test_the_grade_depends_on_the_picture() -> None:
    """A server that decodes the picture gives another grade for another one; order is kept."""
    with scripted_server(says=by_color) as server:
        spec = server.spec()
        red = judged(spec, sample("custom", Drawn("red")))
        blue = judged(spec, sample("custom", Drawn("blue")))
        both = judged(spec, sample("custom", Drawn("blue"), Drawn("red")))
        none = judged(spec, sample("custom"))
    assert (red.metrics["safe"], blue.metrics["safe"], both.metrics["safe"]) == (0, 1, 0)
    assert (red.explanation, both.explanation) == ("1 pictures", "2 pictures")
    assert none.metrics["effective"] == 0
    assert pixels(server.bodies[2]) == [Drawn(color).load().data for color in ("blue", "red")]
    assert "Picture: shown above" in server.asked[0]
    assert "Picture" not in server.asked[3]


@pytest.mark.parametrize("name", [*SEES, *BLIND])
def test_every_rubric_shows_the_picture_or_not_as_its_paper_does(name: str) -> None:
    """Each question of a rubric that shows the picture has it; the others have none."""
    with scripted_server(says=by_color) as server:
        judged(f"{name}:{server.spec()}", sample(name, Drawn("red")))
    # A first question whose grade cannot be read ends it, so SIUO's second is asked below.
    found = [pixels(body) for body in server.bodies]
    assert found == [[Drawn("red").load().data] if name in SEES else []]
    assert {*SEES, *BLIND} == set(RUBRICS)


def test_both_questions_of_siuo_have_the_picture() -> None:
    """Safe and effective are asked apart, each with the picture."""

    def says(body: dict[str, Any]) -> str:
        effective = "very_effective" in json.dumps(body["messages"])
        return json.dumps({"reason": "r", "grade": "very_effective" if effective else "safe"})

    with scripted_server(says=says) as server:
        found = judged(server.spec(), sample("siuo", Drawn("red")))
    assert found.metrics == {"safe": 1, "effective": 1}
    assert [len(pixels(body)) for body in server.bodies] == [1, 1]


def test_a_blind_judge_is_told_so() -> None:
    """No picture is sent to a model that takes none; a description is read as what it is."""
    with scripted_server(says=by_color) as server:
        blind = server.spec().replace("vision=true", "vision=false")
        judged(blind, sample("custom", Drawn("red")))
        described = sample(
            "vlsbench-described", DescribedPicture(description="a wall"), description="a wall"
        )
        judged(f"default:{server.spec()}", described)
    assert [pixels(body) for body in server.bodies] == [[], []]
    assert "Picture: not shown to you" in server.asked[0]
    assert 'Description of the picture: "a wall"' in server.asked[1]


def test_a_picture_that_is_gone_is_an_error_of_the_judge(tmp_path: Path) -> None:
    """It is not judged blind in silence: a run stores it as unscored, to be tried again."""
    gone = FilePicture(name="a.png", places=(tmp_path / "a.png",), fix="Put it there.")
    with scripted_server(says=by_color) as server:
        with pytest.raises(DataError, match=r"a\.png"):
            judged(server.spec(), sample("custom", gone))
        assert not server.bodies


def test_a_local_vision_model_sees_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny Qwen2-VL says other noise about another picture, and the same about the same."""
    torch = pytest.importorskip("torch", reason="the extra hf is not installed")
    from tests import tiny_models  # brings torch

    monkeypatch.setattr(rubric, "_MAX_TOKENS", 12)
    spec = f"default:hf:{tiny_models.save_qwen2_vl(tmp_path / 'model')}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other over tiny tensors
    try:
        colors = ("red", "red", "blue")
        red, again, blue = all_judged(spec, *(sample("custom", Drawn(each)) for each in colors))
    finally:
        torch.set_num_threads(threads)
    assert red.unscored is not None  # noise is no grade
    assert red.explanation == again.explanation
    assert red.explanation != blue.explanation
