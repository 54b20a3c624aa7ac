"""Reward models and safety classifiers of transformers as scorers: ``hf-classifier:MODEL``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from vlmguard.defences.one_thread import OneThread, local_or_hub
from vlmguard.defences.scoring import Score, last_user_message
from vlmguard.engines import EngineSpec
from vlmguard.engines.transformers_weights import Weights, explained
from vlmguard.errors import ConfigError, MissingExtra
from vlmguard.models.store import is_offline
from vlmguard.types import Chat

_LONGEST = 4096  # tokens, where the tokenizer does not say


def open_classifier(spec: EngineSpec) -> Classifier:
    """Open ``hf-classifier:org/model`` or ``hf-classifier:/folder``. Cheap: loads nothing yet.

    Options: ``label`` (name or number of the class that means *safe*; needed where the model has
    more than one), ``dtype``, ``device``, ``revision``, ``trust_remote_code`` (ArmoRM needs it).

    Raises:
        ConfigError: no model is named, or an option is wrong.
        MissingExtra: torch or transformers is not installed.
    """
    options = spec.take(label=str, dtype=str, device=str, revision=str, trust_remote_code=bool)
    label = options.pop("label", None)
    if not spec.value:
        raise ConfigError(f"{spec}: name a model: hf-classifier:org/model or a folder")
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtra("a scorer of transformers", "hf")
    weights = Weights(
        model=local_or_hub(spec.value),
        offline=is_offline(),
        **options,  # type: ignore[arg-type]
    )
    return Classifier(weights, label=None if label is None else str(label))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    model: Any
    tokenizer: Any
    longest: int


class Classifier:
    """A sequence-classification model that reads a query and its answer.

    With one output, the score is that output as it is: a reward. With several, it is the
    probability 0..1 of the class that means *safe*.

    Args:
        weights: what to load, on first use.
        label: name or number of the safe class.
    """

    def __init__(self, weights: Weights, *, label: str | None = None) -> None:
        self._weights = weights
        self._label = label
        self._thread = OneThread(self._load, name="classifier")

    async def score(self, chat: Chat, answer: str) -> Score:
        """See `vlmguard.defences.scoring.Scorer.score`. It reads text only.

        Raises:
            ConfigError: the model cannot be loaded, or ``label`` names none of its classes.
        """
        query = last_user_message(chat).text
        value = await self._thread.run(lambda loaded: self._score(loaded, query, answer))
        return Score(value=value)

    def _load(self) -> _Loaded:
        import torch  # noqa: PLC0415  # slow to import
        from transformers import (  # noqa: PLC0415
            AutoModelForSequenceClassification,
            AutoTokenizer,
        )

        from vlmguard.engines.transformers_host import quiet_unless_terminal  # noqa: PLC0415

        weights = self._weights
        device = weights.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with explained(weights.model), quiet_unless_terminal():
            tokenizer = AutoTokenizer.from_pretrained(weights.model, **weights.origin())
            model = AutoModelForSequenceClassification.from_pretrained(
                weights.model, dtype=weights.dtype, **weights.origin()
            )
        known = tokenizer.model_max_length
        longest = known if known < 1_000_000 else _LONGEST
        return _Loaded(model=model.to(device).eval(), tokenizer=tokenizer, longest=longest)

    def _score(self, loaded: _Loaded, query: str, answer: str) -> float:
        import torch  # noqa: PLC0415

        inputs = _inputs(loaded, query, answer).to(loaded.model.device)
        with torch.inference_mode():
            output = loaded.model(**inputs)
        reward = getattr(output, "score", None)  # ArmoRM's own name for its one reward
        if reward is not None:
            return float(reward.float().flatten()[0])
        logits = output.logits.float()[0]
        if logits.numel() == 1:
            return float(logits[0])
        return float(logits.softmax(-1)[self._safe_class(loaded.model.config.id2label)])

    def _safe_class(self, names: dict[int, str]) -> int:
        for number, name in names.items():
            if self._label is not None and self._label in {str(number), name}:
                return number
        known = ", ".join(f"{number} ({name})" for number, name in names.items())
        raise ConfigError(
            f"hf-classifier:{self._weights.model}: label={self._label} names no class; say which "
            f"one means safe with ?label=…: {known}"
        )


def _inputs(loaded: _Loaded, query: str, answer: str) -> Any:
    """Query and answer as the model was trained to read them: by its template, or as a pair."""
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
        return tokenizer.apply_chat_template(
            turns,
            return_tensors="pt",
            return_dict=True,
            truncation=True,
            max_length=loaded.longest,
        )
    return tokenizer(query, answer, return_tensors="pt", truncation=True, max_length=loaded.longest)
