"""Inference-time defences, ours among others, behind one seam."""

from __future__ import annotations

from vlmguard.defences.base import Defence, Prepared, answer, sighted_target
from vlmguard.defences.guard import Guard
from vlmguard.defences.none import NoDefence

__all__ = ["Defence", "Guard", "NoDefence", "Prepared", "answer", "sighted_target"]
