"""From a request to a safer one: the format, the policy, and the rewriter that joins them."""

from __future__ import annotations

from vlmguard.rewriting.format import Assessment, Layout, parse_assessment, render_assessment
from vlmguard.rewriting.opening import open_rewriter
from vlmguard.rewriting.policy import (
    CATEGORIES,
    CATEGORY_NAMES,
    Category,
    Policy,
    load_policy,
    preset_policy,
)
from vlmguard.rewriting.rewriter import PromptedRewriter, Rewriter

__all__ = [
    "CATEGORIES",
    "CATEGORY_NAMES",
    "Assessment",
    "Category",
    "Layout",
    "Policy",
    "PromptedRewriter",
    "Rewriter",
    "load_policy",
    "open_rewriter",
    "parse_assessment",
    "preset_policy",
    "render_assessment",
]
