"""Training sets for the rewriter, made by the paper's three stages and a fourth that verifies.

A `Source` gives seeds; `process` takes one through hindsight, causal analysis, optimization and
verification; `LocalRunner` (on a cluster: `RayRunner`) does so for all of them, with a `Store` that
loses and repeats nothing; `publish` writes the dataset.
"""

from __future__ import annotations

from vlmguard.synthesis.estimate import Estimate, estimate
from vlmguard.synthesis.limits import LimitedEngine, Limits
from vlmguard.synthesis.outcomes import STAGES, Kind, Outcome, Stage
from vlmguard.synthesis.pipeline import Cast, Recipe, process
from vlmguard.synthesis.players import Player, open_players, player
from vlmguard.synthesis.progress import Prices, Progress, is_hosted
from vlmguard.synthesis.publish import Published, card_facts, publish, store_path
from vlmguard.synthesis.ray_connection import RayCluster
from vlmguard.synthesis.ray_messages import RayModels
from vlmguard.synthesis.ray_runner import RayRunner
from vlmguard.synthesis.rows import CallCount
from vlmguard.synthesis.runner import LocalRunner, RunSettings, recipe_key
from vlmguard.synthesis.seeds import Seed
from vlmguard.synthesis.sources import Source, open_sources, parse_map
from vlmguard.synthesis.store import Store
from vlmguard.synthesis.verify import Bar

__all__ = [
    "STAGES",
    "Bar",
    "CallCount",
    "Cast",
    "Estimate",
    "Kind",
    "LimitedEngine",
    "Limits",
    "LocalRunner",
    "Outcome",
    "Player",
    "Prices",
    "Progress",
    "Published",
    "RayCluster",
    "RayModels",
    "RayRunner",
    "Recipe",
    "RunSettings",
    "Seed",
    "Source",
    "Stage",
    "Store",
    "card_facts",
    "estimate",
    "is_hosted",
    "open_players",
    "open_sources",
    "parse_map",
    "player",
    "process",
    "publish",
    "recipe_key",
    "store_path",
]
