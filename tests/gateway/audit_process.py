"""A process that writes audit records, for tests that kill it or fill its disk.

``python audit_process.py COUNT FILE_SIZE LOG:ON_FULL …`` tells of each record when it was
acknowledged. A file size of 0 is no limit.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

from vlmguard.errors import AuditError
from vlmguard.gateway.audit import AuditRecord, open_audit

_TASKS = 4


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def fill(job: str, count: int) -> None:
    """Four tasks, ``count`` records each."""
    place, _, on_full = job.rpartition(":")
    lost: list[int] = []
    log = open_audit(
        place, on_full="fail" if on_full == "fail" else "continue", on_lost=lost.append
    )
    name = Path(place).name

    async def write(task: int) -> None:
        for step in range(count):
            label = f"{os.getpid()}-{task}-{step}"
            record = AuditRecord(time=datetime.now(UTC), request_id=label, route="/r", status=200)
            try:
                await log.record(record)
            except AuditError as error:
                tell("refused", name, label, error)
            else:
                tell("kept", name, label)

    await asyncio.gather(*map(write, range(_TASKS)))
    await log.aclose()
    tell("lost", name, sum(lost))


async def main(count: int, file_size: int, jobs: list[str]) -> None:
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    await asyncio.gather(*(fill(job, count) for job in jobs))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
