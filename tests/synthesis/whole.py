"""The command line as the target of a process, with all that a run imports."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path

from vlmguard.cli.main import main

for _name in ("pyarrow.parquet", "vlmguard.cli.synth", "vlmguard.engines.openai"):
    with suppress(ImportError):
        importlib.import_module(_name)


def run(arguments: list[str], said: Path) -> None:
    """``vlmguard`` with these arguments; what it says goes into a file."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["COLUMNS"] = "200"
    sys.argv = ["vlmguard", *arguments]
    main()
