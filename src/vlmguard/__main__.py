"""Where the command line begins: ``vlmguard``, and ``python -m vlmguard``.

Loading the commands takes a moment, and so does closing models at the end. A Ctrl-C then ends the
process quietly; between the two the command that runs decides what it means.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""The exit code after a Ctrl-C: 128 and the number of SIGINT, as shells count it."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Somebody who started us in the background may have SIGINT ignored: it stays ignored.
    takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if takes_interrupts:
        signal.signal(signal.SIGINT, _leave)
    try:
        from vlmguard.cli.main import main as run  # noqa: PLC0415  # only now can it be stopped

        if takes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # another one, while the first was being told
        sys.exit(INTERRUPTED)
    finally:
        if takes_interrupts:
            signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Not an exception: one raised amid an import can be caught or wrapped by whoever imports.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):  # closed, or interrupted while it was written
            continue
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
