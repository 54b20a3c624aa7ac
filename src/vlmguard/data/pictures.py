"""The picture files of a dataset: where they are, and whether they are what the records say."""

from __future__ import annotations

from pathlib import Path

from vlmguard.data.records import ImageRef
from vlmguard.errors import DataError, InputError
from vlmguard.images import DEFAULT_LIMITS, decode
from vlmguard.types import Image


def picture_path(root: Path, ref: ImageRef) -> Path:
    """The file of a picture.

    Raises:
        DataError: the path leads out of the dataset; records come from others, too.
    """
    path = root / ref.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"the picture {ref.path!r} is outside of {root}", path=root)
    return path


def load_picture(root: Path, ref: ImageRef) -> Image:
    """The bytes of a picture, checked against its hash.

    Raises:
        DataError: absent, too large, or changed.
    """
    path = picture_path(root, ref)
    try:
        if path.stat().st_size > DEFAULT_LIMITS.max_bytes:
            raise DataError(f"is larger than {DEFAULT_LIMITS.max_bytes:,} bytes", path=path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    image = Image(data=data, media_type=ref.media_type, source=str(path))
    if image.sha256 != ref.sha256:
        raise DataError(
            f"has SHA-256 {image.sha256[:12]}…, but the record says {ref.sha256[:12]}…", path=path
        )
    return image


def check_picture(root: Path, ref: ImageRef) -> None:
    """Read and decode a picture completely.

    Raises:
        DataError: absent, changed, or not decodable.
    """
    image = load_picture(root, ref)
    try:
        decode(image)
    except InputError as error:
        told = str(error).removeprefix(f"{image.source}: ")
        raise DataError(f"cannot be decoded: {told}", path=Path(image.source)) from None
