"""What a record needs besides its text: pictures for models that see, evidence for the others."""

from __future__ import annotations

import asyncio

from vlmguard.errors import PerceptionError
from vlmguard.images import load_image
from vlmguard.perception import Perceiver
from vlmguard.training.dataset import Located, Unusable
from vlmguard.training.examples import Example, Renderer
from vlmguard.types import Image, ImageEvidence


class ExampleMaker:
    """Makes examples of records.

    Args:
        renderer: for the model at hand.
        sighted: the model sees pictures.
        perceiver: looks at pictures for a model that does not, where a record has no evidence.
    """

    def __init__(self, renderer: Renderer, *, sighted: bool, perceiver: Perceiver) -> None:
        self._renderer = renderer
        self._sighted = sighted
        self._perceiver = perceiver

    def __call__(self, located: Located) -> Example:
        """The example.

        Raises:
            Unusable: the model sees, and the record describes a picture that does not exist.
            InputError: a picture cannot be read.
            PerceptionError: a detector failed on one.
        """
        record = located.record
        if self._sighted:
            if record.evidence and not record.images:
                raise Unusable("describes a picture that does not exist, and the model sees")
            return self._renderer.example(record, images=self._images(located))
        return self._renderer.example(record, evidence=self._evidence(located))

    def _images(self, located: Located) -> tuple[Image, ...]:
        return tuple(load_image(located.root / ref.path) for ref in located.record.images)

    def _evidence(self, located: Located) -> tuple[ImageEvidence, ...]:
        record = located.record
        if record.evidence:
            return tuple(seen.as_image_evidence() for seen in record.evidence)
        return tuple(self._perceive(image) for image in self._images(located))

    def _perceive(self, image: Image) -> ImageEvidence:
        seen = asyncio.run(self._perceiver.perceive(image))
        for detector, reason in seen.failed.items():
            raise PerceptionError(f"{image.source}: the detector {detector!r} failed ({reason})")
        return seen
