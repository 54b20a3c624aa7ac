"""From encoded bytes to everything a viewer may see in them.

A guard must look at what the target will look at, and programs differ in how they turn a file into
RGB: some put transparency on white, some on black, some drop it; some scale 16 bits, some clip
them. A picture may therefore have several *views*, and each distinct one becomes a frame.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image as PILImage
from PIL import ImageOps
from PIL.ImageFile import ImageFile

from vlmguard.errors import InputError, VLMGuardError
from vlmguard.images.formats import opener, sniff
from vlmguard.types import Image

_VIEWS_OF_A_STILL = 3  # a picture at the pixel cap may still have all its views
_CACHED_PIXELS = 32_000_000  # 96 MB of RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What a picture may cost, checked before the cost arises.

    Attributes:
        max_bytes: of the encoded file.
        max_pixels: width x height of one frame, read from the header before decoding.
        max_frames: distinct frames to inspect; more are sampled evenly and counted as skipped.
        max_total_pixels: of all frames in the file together; a longer animation is refused.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_frames: int = 16
    max_total_pixels: int = 500_000_000


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """The pixels of a picture.

    Attributes:
        width, height: in pixels, as shown: after EXIF rotation.
        frames: distinct views of distinct frames, RGB, in order; never empty.
        frames_total: frames in the file; 1 for a still picture.
        frames_skipped: distinct views left out over the cap, and second pictures of a JPEG (MPO)
            that are missing.
    """

    width: int
    height: int
    frames: tuple[PILImage.Image, ...]
    frames_total: int = 1
    frames_skipped: int = 0


def decode(image: Image, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode a picture completely. CPU-bound: in async code, call it in a thread.

    The last few results are kept by the hash of the bytes, so that one image is decoded once.

    Raises:
        InputError: over a limit, damaged, or in a format that cannot be read; names the source.
    """
    key = (image.sha256, limits)
    found = _cache.get(key)
    if found is None:
        found = _decode(image, limits)
        _cache.put(key, found)
    return found


def _decode(image: Image, limits: ImageLimits) -> DecodedImage:
    source = image.source
    if len(image.data) > limits.max_bytes:
        raise InputError(
            f"{source}: {len(image.data):,} bytes is over the limit of {limits.max_bytes:,}"
        )
    kind = sniff(image.data, source)
    open_file = opener(kind, source)
    try:
        with open_file(image.data) as file:
            _check_size(file, limits, source)
            return _Reader(file, limits, source).read()
    except (VLMGuardError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more.
        raise InputError(
            f"{source}: damaged or truncated {kind.name}: {str(error) or type(error).__name__}"
        ) from error


def _check_size(file: ImageFile, limits: ImageLimits, source: str) -> None:
    width, height = file.size
    if width * height > limits.max_pixels:
        raise InputError(
            f"{source}: {width}x{height} is {width * height:,} pixels, "
            f"over the limit of {limits.max_pixels:,}; scale it down"
        )


class _Reader:
    """Walks over an open file's frames and keeps the distinct views."""

    def __init__(self, file: ImageFile, limits: ImageLimits, source: str) -> None:
        self._file = file
        self._limits = limits
        self._source = source
        self._total = int(getattr(file, "n_frames", 1))
        self._unreadable: set[int] = set()

    def read(self) -> DecodedImage:
        width, height = self._file.size
        if self._total * width * height > self._limits.max_total_pixels:
            raise InputError(
                f"{self._source}: {self._total} frames of {width}x{height} are more pixels than "
                f"the limit of {self._limits.max_total_pixels:,} for an animation; shorten it"
            )
        affordable = _VIEWS_OF_A_STILL * self._limits.max_pixels // max(1, width * height)
        cap = max(1, min(self._limits.max_frames, affordable))
        kept, distinct = self._first(cap)
        if distinct > cap:
            kept = self._spread(cap, distinct)
        return DecodedImage(
            width=kept[0].width,
            height=kept[0].height,
            frames=tuple(kept),
            frames_total=self._total,
            frames_skipped=distinct - len(kept) + len(self._unreadable),
        )

    def _first(self, cap: int) -> tuple[list[PILImage.Image], int]:
        """The first ``cap`` distinct views, and how many there are in all."""
        kept: list[PILImage.Image] = []
        distinct = 0
        for view in self._distinct():
            distinct += 1
            if len(kept) < cap:
                kept.append(view)
        return kept, distinct

    def _spread(self, cap: int, distinct: int) -> list[PILImage.Image]:
        """``cap`` of the distinct views, evenly over the animation, the first one included."""
        chosen = {round(step * (distinct - 1) / max(1, cap - 1)) for step in range(cap)}
        return [view for at, view in enumerate(self._distinct()) if at in chosen]

    def _distinct(self) -> Iterator[PILImage.Image]:
        seen: set[bytes] = set()
        for frame in self._frames():
            found = views(_upright(frame))
            if self._total == 1 and len(found) == 1:
                yield found[0]  # nothing to compare it with: spare the hash
                return
            for view in found:
                digest = hashlib.blake2b(repr(view.size).encode())
                digest.update(view.tobytes())
                if digest.digest() not in seen:
                    seen.add(digest.digest())
                    yield view

    def _frames(self) -> Iterator[PILImage.Image]:
        """The file itself, once a frame, positioned and decoded."""
        spent = 0
        for at in range(self._total):
            try:
                if self._total > 1:
                    self._file.seek(at)
                _check_size(self._file, self._limits, self._source)
                spent += self._file.width * self._file.height
                if spent > self._limits.max_total_pixels:  # pages may grow: TIFF, MPO
                    raise InputError(
                        f"{self._source}: its {self._total} frames together are over the limit of "
                        f"{self._limits.max_total_pixels:,} pixels; shorten it"
                    )
                self._file.load()
            except (OSError, SyntaxError, ValueError):
                # Photos of phones index a second JPEG that editors cut off; viewers never show it.
                if self._file.format != "MPO" or at == 0:
                    raise
                self._unreadable.add(at)
                continue
            yield self._file


def _upright(frame: PILImage.Image) -> PILImage.Image:
    """The frame as shown, and apart from the file, whose pixels change with the next seek."""
    try:
        return ImageOps.exif_transpose(frame)
    except Exception:  # noqa: BLE001  (viewers show a picture with damaged EXIF unrotated)
        return frame.copy()


def views(frame: PILImage.Image) -> list[PILImage.Image]:
    """How common programs turn one frame into RGB; the usual way first, duplicates possible."""
    if frame.has_transparency_data:
        return _transparent_views(frame.convert("RGBA"))
    if frame.mode.startswith(("I", "F")):
        return _deep_views(frame)
    return [frame.convert("RGB")]


def _transparent_views(frame: PILImage.Image) -> list[PILImage.Image]:
    """On white; and where that differs, on black, and with the transparency dropped.

    Light text shows only on black. Text in fully transparent pixels shows only to the programs that
    drop the alpha channel, as the image loaders of many models do.
    """
    opaque = frame.convert("RGB")
    alpha = frame.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return [opaque]
    composites = []
    for background in ("white", "black"):
        canvas = PILImage.new("RGB", frame.size, background)
        canvas.paste(opaque, mask=alpha)
        composites.append(canvas)
    return [*composites, opaque]


def _deep_views(frame: PILImage.Image) -> list[PILImage.Image]:
    """16 and 32 bits a pixel: scaled to 8; and clipped at 255, as Pillow's ``convert`` does."""
    wide = frame.convert("F")
    low, high = 0.0, 65535.0
    if not frame.mode.startswith("I;16"):
        extrema = wide.getextrema()
        assert isinstance(extrema[0], float)
        assert isinstance(extrema[1], float)
        low, high = extrema
    scale = 255.0 / (high - low) if high > low else 1.0
    scaled = wide.point(lambda value: value * scale - low * scale).convert("L")
    return [scaled.convert("RGB"), frame.convert("L").convert("RGB")]


class _Cache:
    """The last decoded pictures, bounded by their pixels. Safe to use from several threads."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pixels = 0
        self._entries: OrderedDict[tuple[str, ImageLimits], DecodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ImageLimits]) -> DecodedImage | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple[str, ImageLimits], value: DecodedImage) -> None:
        cost = _pixels(value)
        with self._lock:
            if cost > self._max_pixels or key in self._entries:
                return
            self._entries[key] = value
            self._pixels += cost
            while self._pixels > self._max_pixels:
                _, dropped = self._entries.popitem(last=False)
                self._pixels -= _pixels(dropped)


def _pixels(decoded: DecodedImage) -> int:
    return sum(frame.width * frame.height for frame in decoded.frames)


_cache = _Cache(_CACHED_PIXELS)
