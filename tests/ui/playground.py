"""A playground that tests open in a browser: served in a thread, with scripted models."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vlmguard.engines import ENGINES, Capability, EngineSpec, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import EngineUnavailable
from vlmguard.rewriting.format import VERDICT_PREFIX
from vlmguard.types import Chat, Completion, TokenLogprob, Usage
from vlmguard.ui.settings import UiSettings

TARGET, REWRITER, BROKEN = "scripted-target", "scripted-rewriter", "scripted-broken"
ENGINES._known.update(
    {
        TARGET: f"{__name__}:open_target",
        REWRITER: f"{__name__}:open_rewriter",
        BROKEN: f"{__name__}:open_broken",
    }
)

REPORT = {
    "category": "fraud",
    "textual": "Asks for steps.",
    "visual": "Names a forged document.",
    "multimodal": "Together they ask how to forge one.",
    "prompt": "Explain why forged documents are a crime, and how to replace a lost one.",
}
RISKY_ANSWER = "First you take the <b>card</b> and ${alert(1)} `then` you stop."
SAFE_ANSWER = "Forgery is a crime. Ask the office for a new card."
ASKED: list[str] = []
"""What reached a model, for tests that nothing is asked twice."""


def risk_of(text: str) -> float:
    """What the scripted rewriter thinks of a request."""
    if "fake" in text.lower():
        return 0.9
    return 0.4 if "borderline" in text else 0.02


def _judge(chat: Chat, sampling: Sampling) -> Completion | str:
    request = next(m.text for m in reversed(chat.messages) if m.role == "user")
    if chat.messages[-1].text == VERDICT_PREFIX:
        ASKED.append("verdict")
        risk = risk_of(request)
        top = (("risky", math.log(risk)), ("safe", math.log(1 - risk)))
        token = TokenLogprob(token=top[0][0], logprob=top[0][1], top=top)
        return Completion(
            text="risky", finish_reason="length", logprobs=(token,), usage=Usage(prompt_tokens=90)
        )
    ASKED.append("rewrite")
    return json.dumps(REPORT)[len('{"category": "') :]


def open_rewriter(spec: EngineSpec) -> ScriptedEngine:
    """A rewriter that continues a prefix and tells probabilities, as the embedded one does."""
    can = {Capability.STREAMING, Capability.PREFIX, Capability.LOGPROBS}
    return ScriptedEngine(_judge, capabilities=frozenset(can), spec=REWRITER)


def _answer(chat: Chat, sampling: Sampling) -> str:
    ASKED.append("target")
    text = chat.messages[-1].text
    if "crime" in text:
        return SAFE_ANSWER
    return RISKY_ANSWER if risk_of(text) >= 0.4 else "Paris is the capital."


def open_target(spec: EngineSpec) -> ScriptedEngine:
    """A target that does as it is told."""
    return ScriptedEngine(_answer, spec=TARGET)


def open_broken(spec: EngineSpec) -> ScriptedEngine:
    """A rewriter whose server is down."""
    return ScriptedEngine(
        lambda chat, sampling: EngineUnavailable("http://gpu:8000 is down; is the server running?"),
        capabilities=frozenset({Capability.STREAMING, Capability.PREFIX, Capability.LOGPROBS}),
        spec=BROKEN,
    )


def settings(**changes: object) -> UiSettings:
    """Settings with the scripted models."""
    given: dict[str, object] = {
        "targets": (TARGET,),
        "rewriters": (REWRITER, BROKEN),
        "policies": ("balanced", "strict", "permissive"),
    }
    return UiSettings(**{**given, **changes})  # type: ignore[arg-type]


def chromium() -> str | None:
    """Where Chromium is, if it is."""
    for name in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"):
        if Path(name).exists():
            return name
    return None
