"""How a judgement of several judges holds the vote of each: as ``score@judge``."""

from __future__ import annotations

VOTE = "@"
"""Stands between score and judge."""
