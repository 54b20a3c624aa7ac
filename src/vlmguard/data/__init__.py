"""Datasets for the rewriter: the record, files, exports and checks."""

from __future__ import annotations

from vlmguard.data.card import CardFacts, ModelFacts, PromptFacts, SourceFacts, StageFacts
from vlmguard.data.found import Found
from vlmguard.data.reader import read_records, scan
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
from vlmguard.data.splits import SplitShares, split_of
from vlmguard.data.tally import Lengths, Tally
from vlmguard.data.writer import DatasetWriter, image_ref

__all__ = [
    "SCHEMA_VERSION",
    "CardFacts",
    "DatasetWriter",
    "Evidence",
    "Found",
    "ImageRef",
    "Lengths",
    "ModelFacts",
    "PromptFacts",
    "RiskFeature",
    "SourceFacts",
    "Split",
    "SplitShares",
    "StageFacts",
    "Tally",
    "TrainingRecord",
    "Turn",
    "Verification",
    "image_ref",
    "read_records",
    "scan",
    "split_of",
]
