"""Descriptions in place of pictures, for the blind variants named ``…-described``."""

from __future__ import annotations

from dataclasses import dataclass

from vlmguard.perception import Perceiver
from vlmguard.types import Image, ImageEvidence

MEDIA_TYPE = "text/x-picture-description"
"""Of a stand-in; no picture has it, so a description is never taken for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedPicture:
    """Stands for a picture that is not there; what it "loads" is the description.

    Only `DescribedPictures` understands the result. An engine that is shown it refuses it.
    """

    description: str

    def load(self) -> Image:
        """The description as an `Image` of type `MEDIA_TYPE`."""
        return Image(
            data=self.description.encode("utf-8"), media_type=MEDIA_TYPE, source="description"
        )


class DescribedPictures(Perceiver):
    """A perceiver whose evidence about a stand-in is the description; pictures it inspects.

    Figures made with it measure what a blind rewriter does with somebody's description. They are
    never mixed with those of runs that saw the picture.
    """

    async def perceive(self, image: Image) -> ImageEvidence:
        """The description of a stand-in, or the findings about a picture.

        Raises:
            InputError: the picture cannot be decoded or is over a limit.
        """
        if image.media_type != MEDIA_TYPE:
            return await super().perceive(image)
        return ImageEvidence(
            sha256=image.sha256, width=0, height=0, description=image.data.decode("utf-8")
        )
