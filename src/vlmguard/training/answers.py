"""Whole answers of the trained model: are they in form, and how close are the rewrites?

Teacher forcing cannot tell: it shows the model the right answer up to each token. For the
reason-first layout that concerns the verdict too, since the right reasons give it away; there the
risks that thresholds are calibrated on are read after reasons that the model wrote itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vlmguard.errors import RewriteParseError
from vlmguard.rewriting.format import RISKY_PREFIX, Assessment, Layout, parse_assessment
from vlmguard.training.base_model import BaseModel
from vlmguard.training.examples import Example, VerdictTokens
from vlmguard.training.figures import Figures, Scores

MAX_NEW_TOKENS = 512
_KEY = '"verdict": "'


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model wrote about an example.

    Attributes:
        text: all of it, the given beginning included.
        assessment: the same, read; ``None`` when it is not in form.
    """

    text: str
    assessment: Assessment | None


class Writer:
    """Has a model answer examples, greedily and one at a time.

    Args:
        model: the trained one.
        base: its processor and format.
        layout: what it writes.
        verdicts: ids at the verdict's place.
        max_pixels: bigger pictures are scaled down.
        bf16: compute in bfloat16, as in training.
    """

    def __init__(
        self,
        model: Any,
        base: BaseModel,
        *,
        layout: Layout,
        verdicts: VerdictTokens,
        max_pixels: int | None = None,
        bf16: bool = False,
    ) -> None:
        self._model = model
        self._base = base
        self._layout = layout
        self._verdicts = verdicts
        self._max_pixels = max_pixels
        self._bf16 = bf16

    def reasons(self, example: Example) -> Answer:
        """The answer to a risky example, verdict given where the layout says it first."""
        begun = RISKY_PREFIX if self._layout is Layout.VERDICT_FIRST else ""
        return self._read(begun + self._continue(example, begun))

    def margin(self, example: Example) -> float:
        """Log-odds of risky after reasons that the model wrote itself; infinite without a verdict.

        Serving takes an answer without a verdict for a failure, and fails closed.
        """
        text = self._continue(example, "")
        place = text.find(_KEY)
        if place < 0:
            return float("inf")
        with self._inference():
            logits = self._model(**self._inputs(example, text[: place + len(_KEY)])).logits[0, -1]
        return float(logits[self._verdicts.risky] - logits[self._verdicts.safe])

    def _read(self, text: str) -> Answer:
        try:
            return Answer(text=text, assessment=parse_assessment(text, self._layout))
        except RewriteParseError:
            return Answer(text=text, assessment=None)

    def _continue(self, example: Example, begun: str) -> str:
        inputs = self._inputs(example, begun)
        with self._inference():
            out = self._model.generate(
                **inputs,
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=list(self._base.end),
                pad_token_id=self._base.tokenizer.pad_token_id,
            )
        new = out[0, inputs["input_ids"].shape[1] :]
        return str(self._base.tokenizer.decode(new, skip_special_tokens=True))

    def _inputs(self, example: Example, begun: str) -> dict[str, Any]:
        encoded = self._base.format.encode(example.chat(begun), max_pixels=self._max_pixels)
        return {key: value.to(self._model.device) for key, value in encoded.items()}

    @contextmanager
    def _inference(self) -> Iterator[None]:
        training = self._model.training
        self._model.eval()
        kind = self._model.device.type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=self._bf16):
            yield
        self._model.train(training)


def generated_margins(writer: Writer, examples: Sequence[Example]) -> Scores:
    """Verdicts after reasons that the model wrote itself, for the reason-first layout."""
    margins = np.array([writer.margin(example) for example in examples])
    return Scores(
        margins=np.clip(margins, -60, 60), risky=np.array([one.risky for one in examples])
    )


def answer_figures(writer: Writer, examples: Sequence[Example]) -> Figures:
    """How well the model explains and rewrites risky requests.

    Returns:
        ``parse_rate``, and over those in form ``category_accuracy`` and ``rewrite_similarity``:
        the share of words, 0..1, that written and reference rewrite have in common in the same
        order (`difflib.SequenceMatcher.ratio`).
    """
    wanted = [example.assessment for example in examples]
    written = [writer.reasons(example).assessment for example in examples]
    pairs = [(got, want) for got, want in zip(written, wanted, strict=True) if got is not None]
    named = [got.category == want.category for got, want in pairs]
    similar = [_similarity(got.prompt, want.prompt) for got, want in pairs]
    return {
        "answered": float(len(written)),
        "parse_rate": len(pairs) / len(written) if written else None,
        "category_accuracy": float(np.mean(named)) if named else None,
        "rewrite_similarity": float(np.mean(similar)) if similar else None,
    }


def _similarity(written: str | None, reference: str | None) -> float:
    old, new = ((text or "").lower().split() for text in (reference, written))
    return difflib.SequenceMatcher(None, old, new, autojunk=False).ratio()
