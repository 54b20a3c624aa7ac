"""What a record needs besides its text: pictures for models that see, evidence for the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vlmguard.errors import PerceptionError
from vlmguard.images import load_image
from vlmguard.models.notices import say
from vlmguard.models.store import store_dir
from vlmguard.perception import Perceiver
from vlmguard.training.dataset import Located, Unusable
from vlmguard.training.examples import Example, Renderer
from vlmguard.types import Image, ImageEvidence

_EVIDENCE = TypeAdapter(ImageEvidence)
NO_PICTURE = "describes a picture that does not exist, and the model sees"


class EvidenceCache:
    """What detectors found in pictures, computed once and kept on disk.

    Args:
        perceiver: whose findings these are.
        folder: where they are kept; by default beside the model store. Findings of other detectors
            or another version of this package are kept apart.
    """

    def __init__(self, perceiver: Perceiver, folder: Path | None = None) -> None:
        self._perceiver = perceiver
        key = f"{perceiver.fingerprint}-{version('vlmguard-r1')}"
        self._folder = (folder or store_dir().parent / "evidence") / key

    def evidence(self, image: Image) -> ImageEvidence:
        """Of one picture, from the disk where it is there.

        Raises:
            PerceptionError: a detector failed.
            InputError: the picture cannot be decoded.
            MissingExtra: the detectors are not installed.
        """
        return self._recall(image) or asyncio.run(self._look(image))

    def look_at(self, paths: Iterable[Path]) -> None:
        """Look at many pictures at once, those that are not known yet.

        Raises:
            PerceptionError, InputError, MissingExtra: as for `evidence`.
        """
        unknown = [path for path in dict.fromkeys(paths) if self._recall(load_image(path)) is None]
        if unknown:
            say(f"looking at {len(unknown)} pictures …")
            asyncio.run(self._look_at_all(unknown))

    async def _look_at_all(self, paths: list[Path]) -> None:
        few = asyncio.Semaphore(2 * (os.cpu_count() or 1))

        async def look(path: Path) -> None:
            async with few:
                await self._look(load_image(path))

        async with asyncio.TaskGroup() as group:
            for path in paths:
                group.create_task(look(path))

    async def _look(self, image: Image) -> ImageEvidence:
        seen = await self._perceiver.perceive(image)
        for detector, reason in seen.failed.items():
            raise PerceptionError(f"{image.source}: the detector {detector!r} failed ({reason})")
        file = self._file(image)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(_EVIDENCE.dump_json(seen))
        part.replace(file)
        return seen

    def _recall(self, image: Image) -> ImageEvidence | None:
        try:
            return _EVIDENCE.validate_json(self._file(image).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _file(self, image: Image) -> Path:
        return self._folder / image.sha256[:2] / f"{image.sha256}.json"


class ExampleMaker:
    """Makes examples of records.

    Args:
        renderer: for the model at hand.
        sighted: the model sees pictures.
        cache: looks at pictures for a model that does not, where a record has no evidence.
    """

    def __init__(self, renderer: Renderer, *, sighted: bool, cache: EvidenceCache) -> None:
        self._renderer = renderer
        self._sighted = sighted
        self._cache = cache

    def look_ahead(self, records: Iterable[Located]) -> None:
        """Have all the evidence ready that the records will need."""
        if not self._sighted:
            self._cache.look_at(
                path
                for located in records
                if not located.record.evidence
                for path in _pictures(located)
            )

    def __call__(self, located: Located) -> Example | Unusable:
        """The example, or why there is none.

        Raises:
            InputError: a picture cannot be read.
            PerceptionError: a detector failed on one.
        """
        record = located.record
        if self._sighted:
            if record.evidence and not record.images:
                return Unusable(reason=NO_PICTURE)
            return self._renderer.example(record, pictures=_pictures(located))
        return self._renderer.example(record, evidence=self._evidence(located))

    def _evidence(self, located: Located) -> tuple[ImageEvidence, ...]:
        record = located.record
        if record.evidence:
            return tuple(seen.as_image_evidence() for seen in record.evidence)
        return tuple(self._cache.evidence(load_image(path)) for path in _pictures(located))


def _pictures(located: Located) -> tuple[Path, ...]:
    return tuple(located.root / ref.path for ref in located.record.images)
