"""Descriptions as evidence."""

from __future__ import annotations

from tests.drawing import encode, shapes
from vlmguard.evals.described import DescribedPicture, DescribedPictures
from vlmguard.images import load_image


async def test_a_description_is_the_evidence() -> None:
    """Nothing is looked at, and the words come through as they are."""
    perceiver = DescribedPictures([])
    evidence = await perceiver.perceive(DescribedPicture(description="Ein Dach, nachts").load())
    assert evidence.description == "Ein Dach, nachts"
    assert (evidence.width, evidence.text, evidence.objects) == (0, (), ())
    perceiver.close()


async def test_pictures_are_still_looked_at() -> None:
    """Among stand-ins, a real picture is inspected as ever."""
    perceiver = DescribedPictures([])
    evidence = await perceiver.perceive(load_image(encode(shapes(size=(64, 48)))))
    assert (evidence.width, evidence.height, evidence.description) == (64, 48, None)
    perceiver.close()
