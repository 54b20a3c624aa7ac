"""What self-contained pages share: their style, veils over risky text, and what they may load."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files


@cache
def asset(name: str, package: str = "vlmguard.data") -> str:
    """The text of a file that is shipped with a package."""
    return files(package).joinpath(name).read_text("utf-8")


def style(*sheets: str) -> str:
    """The shared style with a page's own after it."""
    return "\n".join((asset("base.css"), *sheets))


def script(*scripts: str) -> str:
    """One script for a page: the shared one, which lifts veils, with the page's own after it."""
    return "\n".join(('"use strict";', asset("veil.js"), *scripts))


def content_policy(text: str) -> str:
    """A Content-Security-Policy: nothing is loaded, and no script runs but ``text``.

    Args:
        text: exactly what stands between the script's tags.
    """
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
