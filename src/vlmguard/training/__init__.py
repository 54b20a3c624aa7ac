"""Supervised fine-tuning of the rewriter: recipe → data → model → adapter.

``import vlmguard.training`` is light; what needs torch is imported by `train` when it runs.
"""

from __future__ import annotations

from vlmguard.training.recipe import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe"]
