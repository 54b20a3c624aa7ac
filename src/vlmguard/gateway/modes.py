"""Whether decisions are carried out, as it is written in files of settings and keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

Mode = Literal["enforce", "shadow", "off"]
"""``enforce`` carries decisions out, ``shadow`` only notes them, ``off`` makes none."""


def _off(value: object) -> object:
    """YAML reads a bare ``off`` as false."""
    return "off" if value is False else value


ModeField = Annotated[Mode, BeforeValidator(_off)]
"""`Mode` in a file that people write."""
