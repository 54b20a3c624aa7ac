"""VLMGuard-R1: a prompt rewriter that makes any vision-language model safer.

::

    from vlmguard import Guard, Chat, load_image, open_engine

    guard = Guard()                                    # the embedded rewriter
    rewrite = await guard.rewrite("What is this?", ["photo.jpg"])
    target = open_engine("openai:llava@http://localhost:8000/v1")
    reply = await guard.respond(Chat.of("What is this?", [load_image("photo.jpg")]), target)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Capability",
    "Chat",
    "Completion",
    "ConfigError",
    "DataError",
    "Engine",
    "EngineError",
    "Guard",
    "Image",
    "ImageEvidence",
    "InputError",
    "Message",
    "ModelStoreError",
    "NoDefence",
    "OutputError",
    "PerceptionError",
    "Policy",
    "PromptedRewriter",
    "Reply",
    "Rewrite",
    "Rewriter",
    "RiskReport",
    "Sampling",
    "Trace",
    "VLMGuardError",
    "load_image",
    "load_policy",
    "open_engine",
    "open_rewriter",
]

# Imported when they are first asked for: the package itself is there at once, so that the command
# line can take a Ctrl-C from its first moment, and an import of one part brings no other.
_HOMES = {
    "vlmguard.defences": ("Guard", "NoDefence"),
    "vlmguard.engines": ("Capability", "Engine", "Sampling", "open_engine"),
    "vlmguard.errors": (
        "ConfigError",
        "DataError",
        "EngineError",
        "InputError",
        "ModelStoreError",
        "OutputError",
        "PerceptionError",
        "VLMGuardError",
    ),
    "vlmguard.images": ("load_image",),
    "vlmguard.rewriting": (
        "Policy",
        "PromptedRewriter",
        "Rewriter",
        "load_policy",
        "open_rewriter",
    ),
    "vlmguard.types": (
        "Chat",
        "Completion",
        "Image",
        "ImageEvidence",
        "Message",
        "Reply",
        "Rewrite",
        "RiskReport",
        "Trace",
    ),
}

if TYPE_CHECKING:
    from vlmguard.defences import Guard, NoDefence
    from vlmguard.engines import Capability, Engine, Sampling, open_engine
    from vlmguard.errors import (
        ConfigError,
        DataError,
        EngineError,
        InputError,
        ModelStoreError,
        OutputError,
        PerceptionError,
        VLMGuardError,
    )
    from vlmguard.images import load_image
    from vlmguard.rewriting import Policy, PromptedRewriter, Rewriter, load_policy, open_rewriter
    from vlmguard.types import (
        Chat,
        Completion,
        Image,
        ImageEvidence,
        Message,
        Reply,
        Rewrite,
        RiskReport,
        Trace,
    )
else:

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(home), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
