"""Reads an assessment while it is still being written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_FIELD = re.compile(r'"(category|textual|visual|multimodal|prompt)"\s*:\s*"((?:[^"\\]|\\.)*)')


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialAssessment:
    """What of an assessment is there so far; empty strings for what is to come."""

    category: str = ""
    textual: str = ""
    visual: str = ""
    multimodal: str = ""
    prompt: str = ""


def read_partial(text: str) -> PartialAssessment:
    """The fields of an unfinished JSON object, the last of them perhaps cut off.

    For showing only: what the guard acts on is read strictly by
    `vlmguard.rewriting.format.parse_assessment`.
    """
    found = {name: _unescaped(value) for name, value in _FIELD.findall(text)}
    return PartialAssessment(**found)


def _unescaped(value: str) -> str:
    try:
        read = json.loads(f'"{value}"', strict=False)
    except ValueError:  # cut off within an escape
        return value
    return str(read)
