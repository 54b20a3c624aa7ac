"""Models that answer a chat, chosen by a spec string.

`Engine` is the seam; `open_engine` turns ``"openai:llava@http://localhost:8000/v1"`` into one.
"""

from __future__ import annotations

from vlmguard.engines.base import Capability, Engine, Sampling, require
from vlmguard.engines.spec import EngineSpec
from vlmguard.registry import Registry

__all__ = ["ENGINES", "Capability", "Engine", "EngineSpec", "Sampling", "open_engine", "require"]

ENGINES = Registry(
    "engine",
    {
        "smollm2": "vlmguard.engines.llamacpp:open_smollm2",
        "llamacpp": "vlmguard.engines.llamacpp:open_llamacpp",
        "openai": "vlmguard.engines.openai:open_openai",
        "hf": "vlmguard.engines.transformers:open_transformers",
        "scripted": "vlmguard.engines.scripted:open_scripted",
        "vllm": "vlmguard.engines.vllm:open_vllm",
    },
    group="vlmguard.engines",
)
"""Scheme → a function ``(EngineSpec) -> Engine``. Opening is cheap; models load on first use."""


def open_engine(spec: str) -> Engine:
    """Open the engine that a spec string names.

    Raises:
        ConfigError: malformed spec or unknown option.
        UnknownName: unknown scheme.
        MissingExtra: its dependencies are not installed.
    """
    parsed = EngineSpec.parse(spec)
    engine: Engine = ENGINES.load(parsed.scheme)(parsed)
    return engine
