"""Runs the detectors over a picture, each once, and collects what they found."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from PIL import Image as PILImage

from vlmguard.errors import ConfigError, UnknownName
from vlmguard.images import DEFAULT_LIMITS, DecodedImage, ImageLimits, decode
from vlmguard.perception.base import DEFAULT_DETECTORS, DETECTORS, Detector, Findings
from vlmguard.types import Image, ImageEvidence

Value = TypeVar("Value")

_WORKERS = max(2, os.cpu_count() or 1)


class Perceiver:
    """What a picture shows, as text evidence for models that cannot see.

    A picture is decoded once; the detectors run side by side in threads (onnxruntime releases the
    GIL). Findings are cached by picture, detector and detector version, and callers that ask for
    the same picture at the same time, from any event loop, share one inspection.

    Args:
        detectors: names from `vlmguard.perception.DETECTORS`, ``package.module:attribute``, or
            detectors themselves. Named ones load on first use and are shared by all perceivers.
        cache_size: pictures whose findings are kept.
        limits: caps on what a picture may cost.

    Raises:
        UnknownName: a name stands for no detector; lists those there are.
    """

    def __init__(
        self,
        detectors: Sequence[str | Detector] = DEFAULT_DETECTORS,
        *,
        cache_size: int = 1024,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        for given in detectors:
            if isinstance(given, str) and given not in DETECTORS and ":" not in given:
                known = ", ".join(DETECTORS.names())
                raise UnknownName(f"unknown detector {given!r}; known: {known}")
        self._detectors = tuple(_Lazy(given) for given in detectors)
        enabled = {lazy.name for lazy in self._detectors}
        self._disabled = tuple(name for name in DEFAULT_DETECTORS if name not in enabled)
        self._limits = limits
        self._cache_size = cache_size
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._running: dict[str, Future[ImageEvidence]] = {}
        self._lock = threading.RLock()
        # Two pools: an inspection waits for its detectors, and must not take their places.
        self._inspections = ThreadPoolExecutor(_WORKERS, thread_name_prefix="vlmguard-inspect")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="vlmguard-detect")

    @property
    def fingerprint(self) -> str:
        """Which detectors look; part of the cache keys of decisions that rest on the evidence."""
        return "+".join(lazy.name for lazy in self._detectors) or "none"

    async def perceive(self, image: Image) -> ImageEvidence:
        """Inspect one picture. Cancelling the call leaves the inspection to its other callers.

        Raises:
            InputError: the picture cannot be decoded or is over a limit.
            MissingExtra: the library of a detector is not installed.
        """
        return await _result(self._shared(image))

    def close(self) -> None:
        """Stop the threads once their work is done. Idempotent; the perceiver is then used up."""
        self._inspections.shutdown(wait=False)
        self._workers.shutdown(wait=False)

    def _shared(self, image: Image) -> Future[ImageEvidence]:
        with self._lock:
            running = self._running.get(image.sha256)
            if running is None:
                running = self._inspections.submit(self._inspect, image)
                self._running[image.sha256] = running
                running.add_done_callback(lambda _: self._finished(image.sha256))
            return running

    def _finished(self, sha256: str) -> None:
        with self._lock:
            self._running.pop(sha256, None)

    def _inspect(self, image: Image) -> ImageEvidence:
        """Runs in a thread, at most once at a time for one picture."""
        record = self._recall(image.sha256)
        missing = [
            lazy for lazy in self._detectors if record is None or lazy.key not in record.findings
        ]
        failed: dict[str, str] = {}
        if record is None or missing:
            decoded = decode(image, self._limits)
            record = record or _Record.of(decoded)
            running = [
                (lazy, self._workers.submit(lazy.detect, decoded.frames)) for lazy in missing
            ]
            for lazy, future in running:
                try:
                    record.findings[lazy.key] = future.result()
                except ConfigError:  # MissingExtra: nothing that another picture would change
                    raise
                except Exception as error:  # noqa: BLE001  (whatever it was, it is reported)
                    failed[lazy.name] = f"{type(error).__name__}: {error}"
            self._keep(image.sha256, record)
        found = [
            record.findings[key] for lazy in self._detectors if (key := lazy.key) in record.findings
        ]
        scores = [findings.nudity for findings in found if findings.nudity is not None]
        return ImageEvidence(
            sha256=image.sha256,
            width=record.width,
            height=record.height,
            frames=record.frames,
            frames_skipped=record.frames_skipped,
            text=tuple(box for findings in found for box in findings.text),
            objects=tuple(seen for findings in found for seen in findings.objects),
            nudity=max(scores, default=None),
            disabled=self._disabled,
            failed=failed,
        )

    def _recall(self, sha256: str) -> _Record | None:
        with self._lock:
            record = self._records.get(sha256)
            if record is not None:
                self._records.move_to_end(sha256)
            return record

    def _keep(self, sha256: str, record: _Record) -> None:
        with self._lock:
            self._records[sha256] = record
            self._records.move_to_end(sha256)
            while len(self._records) > self._cache_size:
                self._records.popitem(last=False)


@dataclass(slots=True, kw_only=True)
class _Record:
    """What is known about one picture; findings by name and version of their detector."""

    width: int
    height: int
    frames: int
    frames_skipped: int
    findings: dict[tuple[str, str], Findings] = field(default_factory=dict)

    @classmethod
    def of(cls, decoded: DecodedImage) -> _Record:
        return cls(
            width=decoded.width,
            height=decoded.height,
            frames=len(decoded.frames),
            frames_skipped=decoded.frames_skipped,
        )


_loaded: dict[str, Detector] = {}
_loading = threading.Lock()


class _Lazy:
    """A detector that loads on first use; those given by name are loaded once a process."""

    def __init__(self, given: str | Detector) -> None:
        self._given = given
        self.name = given if isinstance(given, str) else given.name

    @property
    def key(self) -> tuple[str, str]:
        """Name and version; of no version before it was loaded, when nothing can be cached."""
        detector = _loaded.get(self._given) if isinstance(self._given, str) else self._given
        return (self.name, "" if detector is None else detector.version)

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        return self._detector().detect(frames)

    def _detector(self) -> Detector:
        if not isinstance(self._given, str):
            return self._given
        with _loading:
            if self._given not in _loaded:
                _loaded[self._given] = DETECTORS.load(self._given)()
            return _loaded[self._given]


async def _result(future: Future[Value]) -> Value:
    """Wait for a thread's result without tying it to this event loop or this task.

    ``asyncio.wrap_future`` would cancel the work of all callers when one of them is cancelled.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def wake(_: Future[Value]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    await done.wait()
    return future.result()
