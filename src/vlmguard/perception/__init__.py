"""What a picture shows, as text evidence, for models that cannot see.

`Perceiver` runs three detectors (text, objects, nudity) and gives an `ImageEvidence`; `describe`
puts it into words; `DescribedEngine` lets a text-only engine stand in for a vision-language model.
"""

from __future__ import annotations

from vlmguard.perception.base import DEFAULT_DETECTORS, DETECTORS, Detector, Findings
from vlmguard.perception.described import DescribedEngine, describe
from vlmguard.perception.perceiver import Perceiver

__all__ = [
    "DEFAULT_DETECTORS",
    "DETECTORS",
    "DescribedEngine",
    "Detector",
    "Findings",
    "Perceiver",
    "describe",
]
