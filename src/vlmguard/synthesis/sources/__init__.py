"""Where seeds come from: preference data in the formats people have it in."""

from __future__ import annotations

from vlmguard.synthesis.sources.base import Source
from vlmguard.synthesis.sources.columns import parse_map
from vlmguard.synthesis.sources.opening import KINDS, open_sources

__all__ = ["KINDS", "Source", "open_sources", "parse_map"]
