"""Inference-time defences, ours among others, behind one seam."""

from __future__ import annotations

from vlmguard.defences.base import Defence, Prepared, Preparing, answer, sighted_target
from vlmguard.defences.guard import DecisionStore, Guard
from vlmguard.defences.none import NoDefence
from vlmguard.defences.opening import DEFENCES, open_defence

__all__ = [
    "DEFENCES",
    "DecisionStore",
    "Defence",
    "Guard",
    "NoDefence",
    "Prepared",
    "Preparing",
    "answer",
    "open_defence",
    "sighted_target",
]
