"""Guessing what a picture shows. The real network; the pictures are drawn, but for one test."""

from __future__ import annotations

import hashlib
import math
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from vlmguard.images import decode, load_image

pytest.importorskip("onnxruntime")

from vlmguard.perception.objects import Objects

PHOTOS = Path(__file__).parents[3] / "shared/data/photos/images"


@pytest.fixture(scope="module")
def objects() -> Objects:
    """One loaded classifier for all tests."""
    return Objects()


def clock() -> PILImage.Image:
    """The face of a clock."""
    image = PILImage.new("RGB", (400, 400), "lightgray")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 360, 360), fill="white", outline="black", width=12)
    font = ImageFont.load_default(34)
    for hour in range(1, 13):
        turn = math.radians(hour * 30 - 90)
        place = (200 + 125 * math.cos(turn), 200 + 125 * math.sin(turn))
        draw.text(place, str(hour), fill="black", font=font, anchor="mm")
    for angle, length, width in ((30, 70, 10), (120, 110, 6)):
        turn = math.radians(angle - 90)
        end = (200 + length * math.cos(turn), 200 + length * math.sin(turn))
        draw.line((200, 200, *end), fill="black", width=width)
    return image


def test_a_drawn_clock(objects: Objects) -> None:
    """A clock face is taken for one, and every guess carries its probability."""
    guesses = objects.detect([clock()]).objects
    assert guesses[0].label == "analog clock"
    assert all(0.1 <= guess.probability <= 1 for guess in guesses)
    assert [g.probability for g in guesses] == sorted(
        (g.probability for g in guesses), reverse=True
    )


def test_all_frames_count(objects: Objects) -> None:
    """An object in one frame of many is reported, with its highest probability."""
    blank = PILImage.new("RGB", (300, 300), "white")
    assert objects.detect([blank, clock()]).objects[0].label == "analog clock"


def test_the_ends_of_long_pictures_are_seen(objects: Objects) -> None:
    """What stands at the end of a panorama is not cropped away."""
    for size, place in (((1600, 400), (1200, 0)), ((400, 1600), (0, 0))):
        image = PILImage.new("RGB", size, "lightgray")
        image.paste(clock(), place)
        assert objects.detect([image]).objects[0].label == "analog clock"


def test_nothing_recognized(objects: Objects) -> None:
    """An empty picture gives no guess, rather than an unlikely one."""
    assert objects.detect([PILImage.new("RGB", (300, 300), "white")]).objects == ()


def test_the_threshold_and_the_count(objects: Objects) -> None:
    """Both can be set."""
    assert len(Objects(threshold=0.0, most=3).detect([clock()]).objects) == 3
    assert Objects(threshold=0.99).detect([clock()]).objects == ()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7000, 3)], ids=str)
def test_odd_sizes(objects: Objects, size: tuple[int, int]) -> None:
    """No size breaks the classifier."""
    objects.detect([PILImage.new("RGB", size, "gray")])


def test_the_shipped_files() -> None:
    """The network is the one that the build script wrote; a thousand names, all different."""
    data = resources.files("vlmguard.perception") / "data"
    network = (data / "efficientnet_lite0.onnx").read_bytes()
    assert hashlib.sha256(network).hexdigest() == (
        "1ba2eb99effe49c1961995e17a1acb18b0bb12165cacf1a10e7ba6ca957c3cde"
    )
    labels = (data / "imagenet_labels.txt").read_text("utf-8").splitlines()
    assert len(labels) == len(set(labels)) == 1000
    assert labels[651] == "microwave"
    assert "Apache License" in (data / "NOTICE.txt").read_text("utf-8")


@pytest.mark.skipif(not PHOTOS.exists(), reason="development photographs are not here")
def test_photographs(objects: Objects) -> None:
    """Clear photographs are recognized: a kitchen, a ball game."""
    expected = {"0537.jpg": "microwave", "0496.jpg": "ballplayer", "0480.jpg": "tennis racket"}
    for name, label in expected.items():
        found = objects.detect(decode(load_image(PHOTOS / name)).frames).objects[0]
        assert found.label == label
        assert found.probability > 0.85
