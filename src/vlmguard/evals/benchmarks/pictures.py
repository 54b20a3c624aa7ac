"""The pictures of samples: files, bytes of a table, or drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vlmguard.errors import DataError, InputError
from vlmguard.images import load_image
from vlmguard.types import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePicture:
    """A picture file, looked for when it is needed.

    Attributes:
        name: as the benchmark calls it, e.g. ``"imgs/289.png"``.
        places: where it may be; the first that exists is taken.
        fix: how to get it, in a sentence.
    """

    name: str
    places: tuple[Path, ...]
    fix: str

    @property
    def path(self) -> Path | None:
        """The file; ``None`` where there is none."""
        return next((place for place in self.places if place.is_file()), None)

    def load(self) -> Image:
        """The encoded picture, checked.

        Raises:
            DataError: missing or damaged.
        """
        path = self.path
        if path is None:
            raise DataError(f"the picture is missing. {self.fix}", path=self.places[0])
        try:
            return load_image(path)
        except InputError as error:
            told = str(error).removeprefix(f"{path}: ")
            raise DataError(f"the picture cannot be used: {told}", path=path) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """A picture inside a table.

    Attributes:
        data: the encoded file.
        table: where it stands, for messages.
    """

    data: bytes = field(repr=False)
    table: Path

    def load(self) -> Image:
        """The encoded picture, checked.

        Raises:
            DataError: damaged.
        """
        try:
            return load_image(self.data)
        except InputError as error:
            raise DataError(f"a picture cannot be used: {error}", path=self.table) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPicture:
    """Text that is drawn when the picture is needed, as its benchmark describes it.

    Attributes:
        text: what it shows.
        draw: text → encoded file.
    """

    text: str
    draw: Callable[[str], bytes]

    def load(self) -> Image:
        """The encoded picture.

        Raises:
            MissingExtra: a font is not installed.
        """
        data = self.draw(self.text)
        return Image(data=data, media_type="image/png", source=f"drawn: {self.text:.40}")


def leads_out(name: str) -> bool:
    """Whether a picture's name, which others wrote, leads out of its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or not name.strip()
