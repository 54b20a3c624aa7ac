"""The policies in force: one for all, others for some keys, read anew when their files change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from vlmguard.errors import ConfigError
from vlmguard.rewriting import Policy, load_policy
from vlmguard.rewriting.policy import PRESETS

Made = TypeVar("Made")
_log = logging.getLogger(__name__)


class Policies(Generic[Made]):
    """What is made of each policy (a guard), by the preset or file that names it.

    Requests that run keep what they began with. A file that becomes invalid changes nothing but the
    log.

    Args:
        make: makes the guard of a policy.
    """

    def __init__(self, make: Callable[[Policy], Made]) -> None:
        self._make = make
        self._made: dict[str, tuple[str, Made]] = {}
        self._seen: dict[str, tuple[int, int, int] | None] = {}

    def get(self, source: str) -> Made:
        """What was made of a policy; loads it at first.

        Raises:
            ConfigError: there is no such policy, or it is not valid.
        """
        known = self._made.get(source)
        if known is not None:
            return known[1]
        self._seen[source] = _signature(source)
        policy = load_policy(source)
        made = self._make(policy)
        self._made[source] = (policy.fingerprint, made)
        return made

    def reload(self) -> int:
        """Read all files again; how many policies changed."""
        changed = 0
        for source, (fingerprint, _) in list(self._made.items()):
            self._seen[source] = _signature(source)
            try:
                policy = load_policy(source)
                if policy.fingerprint == fingerprint:
                    continue
                self._made[source] = (policy.fingerprint, self._make(policy))
            except ConfigError as error:
                _log.error("the policy stays as it was: %s", error)  # one line
                continue
            changed += 1
            _log.info("policy %s changed and is in force", source)
        return changed

    async def watch(self, every_s: float = 1.0) -> None:
        """Reload whenever a file changes, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            if any(_signature(source) != seen for source, seen in list(self._seen.items())):
                # A moment, so that whoever writes the file in pieces is done.
                await asyncio.sleep(min(0.1, every_s))
                start = time.perf_counter()
                self.reload()
                _log.debug("read policies in %.1f ms", (time.perf_counter() - start) * 1000)


def _signature(source: str) -> tuple[int, int, int] | None:
    """Changes when the file does; follows links, as Kubernetes switches them."""
    if source in PRESETS:
        return None
    try:
        found = Path(source).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
