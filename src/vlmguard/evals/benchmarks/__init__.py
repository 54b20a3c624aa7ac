"""The field's benchmarks, read in the layouts that their authors publish.

`open_benchmark` opens one by name; what it gives yields `vlmguard.evals.types.Sample`s, tells what
of the data is there (`OpenedBenchmark.check`) and hashes what it reads. Nothing of the data is part
of this package.
"""

from __future__ import annotations

from vlmguard.evals.benchmarks.base import Facts
from vlmguard.evals.benchmarks.opened import Check, OpenedBenchmark, Part
from vlmguard.evals.benchmarks.opening import BENCHMARKS, data_dir, open_benchmark
from vlmguard.evals.benchmarks.pictures import DrawnPicture, FilePicture, StoredPicture

__all__ = [
    "BENCHMARKS",
    "Check",
    "DrawnPicture",
    "Facts",
    "FilePicture",
    "OpenedBenchmark",
    "Part",
    "StoredPicture",
    "data_dir",
    "open_benchmark",
]
