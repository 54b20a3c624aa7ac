"""From a spec string to a rewriter."""

from __future__ import annotations

import os

from vlmguard.engines import Engine, open_engine
from vlmguard.errors import ConfigError
from vlmguard.perception import Perceiver
from vlmguard.rewriting.rewriter import PromptedRewriter

DEFAULT_REWRITER = "smollm2"


def open_rewriter(
    spec: str | None = None, *, target: Engine | None = None, perceiver: Perceiver | None = None
) -> PromptedRewriter:
    """Open the rewriter that a spec names.

    Args:
        spec: an engine spec; ``"self"`` has the target rewrite for itself; ``None`` reads
            ``VLMGUARD_REWRITER`` and falls back on the embedded model.
        target: the target's engine, for ``"self"``.
        perceiver: reads pictures for a rewriter that cannot see.

    Raises:
        ConfigError: malformed spec, or ``"self"`` without a target.
    """
    spec = spec or os.environ.get("VLMGUARD_REWRITER") or DEFAULT_REWRITER
    if spec == "self":
        if target is None:
            raise ConfigError("the rewriter 'self' is the target itself: name a target as well")
        return PromptedRewriter(target, perceiver=perceiver, name=f"self ({target.spec})")
    return PromptedRewriter(open_engine(spec), perceiver=perceiver)
