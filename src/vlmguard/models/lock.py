"""One process at a time: a lock that the kernel lets go of when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None], poll_s: float = 0.2) -> Iterator[None]:
    """Hold the lock file ``path``; wait for it as long as another process holds it.

    The file stays behind, empty: deleting it would let two processes lock two files of one name.

    Args:
        path: the lock file; made if absent, in a folder that exists.
        on_wait: called once, before the first wait.
        poll_s: seconds between two attempts.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            on_wait()
            while not _try_lock(descriptor):
                time.sleep(poll_s)
        yield
    finally:
        os.close(descriptor)  # closing the file unlocks it
