"""Audit records are committed in groups: all that came up while the last group was written.

One thread writes, one deletes old records; the event loop waits for neither.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vlmguard.errors import AuditError
from vlmguard.gateway.audit import AuditEntry, AuditRecord, LateUsage, OnFull, Sink

_log = logging.getLogger(__name__)
_GROUP = 1000
"""Records of one commit at most."""
_EXPIRE_EVERY_S = 600.0
_TELL_EVERY_S = 60.0


@dataclass(slots=True)
class _Waiting:
    entry: AuditEntry
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class GroupedLog:
    """An `AuditLog` that commits in groups: all that came up while the last group was written.

    Args:
        sink: the form of log.
        keep_content, on_full, on_lost: see `open_audit`.
        retention: age at which records are deleted.
        expire_every_s: seconds between two looks for such records.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        keep_content: bool = False,
        retention: timedelta | None = None,
        on_full: OnFull = "fail",
        on_lost: Callable[[int], None] = lambda _: None,
        expire_every_s: float = _EXPIRE_EVERY_S,
    ) -> None:
        self._sink = sink
        self._keep_content = keep_content
        self._retention = retention
        self._on_full = on_full
        self._on_lost = on_lost
        self._losing = False
        self._tell_at = -math.inf
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._expire_every_s = expire_every_s
        self._threads = [threading.Thread(target=self._write_all, name="vlmguard-audit")]
        if retention is not None:
            self._threads.append(threading.Thread(target=self._expire_all, name="vlmguard-expire"))
        for thread in self._threads:
            thread.daemon = True  # a process that was not closed still ends
            thread.start()

    async def record(self, record: AuditRecord) -> None:
        """See `AuditLog.record`. A caller that is cancelled leaves the record to be written."""
        await self._add(record if self._keep_content else record.without_content())

    async def add_usage(self, late: LateUsage) -> None:
        """See `AuditLog.add_usage`."""
        await self._add(late)

    async def _add(self, entry: AuditEntry) -> None:
        if self._closing.is_set():
            raise AuditError("the audit log is closed")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(entry, loop, loop.create_future())
        self._queue.put(waiting)
        await waiting.done

    async def aclose(self) -> None:
        """See `AuditLog.aclose`."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        with ThreadPoolExecutor(max_workers=1) as worker:
            await asyncio.get_running_loop().run_in_executor(worker, self._join)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _write_all(self) -> None:
        """The writer's thread: one group after the other, until the log is closed."""
        open_ = True
        while open_:
            first = self._queue.get()
            group: list[_Waiting] = []
            while True:
                if first is None:
                    open_ = False
                else:
                    group.append(first)
                if len(group) >= _GROUP or self._queue.empty():
                    break
                first = self._queue.get()
            if group:
                self._write(group)
        self._sink.close()

    def _write(self, group: list[_Waiting]) -> None:
        failure: AuditError | None = None
        try:
            self._sink.write([waiting.entry for waiting in group])
        except AuditError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # whoever waits must hear of it
            if len(group) > 1:  # one record that cannot be written does not take others with it
                for waiting in group:
                    self._write([waiting])
                return
            failure = AuditError(f"the audit log failed: {type(error).__name__}: {error}")
        if failure is not None and self._on_full == "continue":
            self._lost(sum(isinstance(one.entry, AuditRecord) for one in group), failure)
            failure = None
        elif failure is None and self._losing:
            self._losing = False
            _log.warning("the audit log can be written again")
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for waiting in group:
            by_loop.setdefault(waiting.loop, []).append(waiting.done)
        for loop, futures in by_loop.items():
            try:
                loop.call_soon_threadsafe(_wake, futures, failure)
            except RuntimeError:  # that loop is closed: nobody waits any more
                continue

    def _lost(self, count: int, failure: AuditError) -> None:
        now = time.monotonic()
        if now >= self._tell_at:  # on a disk at its brim, small groups still fit now and then
            self._tell_at = now + _TELL_EVERY_S
            self._losing = True
            _log.error("records are lost until the audit log can be written again: %s", failure)
        self._on_lost(count)

    def _expire_all(self) -> None:
        """The thread that deletes old records: at once, and then every so often."""
        assert self._retention is not None
        while True:
            try:
                count = self._sink.expire(datetime.now(UTC) - self._retention)
            except AuditError as error:
                _log.warning("old records stay in the audit log: %s", error)
            else:
                if count:
                    _log.info("deleted %d old records from the audit log", count)
            if self._closing.wait(self._expire_every_s):
                return


def _wake(futures: list[asyncio.Future[None]], failure: AuditError | None) -> None:
    for future in futures:
        if future.done():  # cancelled: its caller went away
            continue
        if failure is None:
            future.set_result(None)
        else:
            # An exception object holds one traceback; each waiter gets its own.
            future.set_exception(AuditError(str(failure)))
