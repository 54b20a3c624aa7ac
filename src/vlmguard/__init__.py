"""VLMGuard-R1: a prompt rewriter that makes any vision-language model safer.

::

    from vlmguard import Guard, Chat, load_image, open_engine

    guard = Guard()                                    # the embedded rewriter
    rewrite = await guard.rewrite("What is this?", ["photo.jpg"])
    target = open_engine("openai:llava@http://localhost:8000/v1")
    reply = await guard.respond(Chat.of("What is this?", [load_image("photo.jpg")]), target)
"""

from __future__ import annotations

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
