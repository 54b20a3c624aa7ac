"""Datasets for the rewriter: the record, files, exports and checks."""

from __future__ import annotations

from vlmguard.data.records import (
    SCHEMA_VERSION,
    Evidence,
    ImageRef,
    RiskFeature,
    Split,
    TrainingRecord,
    Turn,
    Verification,
)

__all__ = [
    "SCHEMA_VERSION",
    "Evidence",
    "ImageRef",
    "RiskFeature",
    "Split",
    "TrainingRecord",
    "Turn",
    "Verification",
]
