"""One generation: choosing tokens, turning them into text, and knowing when to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from vlmguard.engines.base import Sampling
from vlmguard.engines.transformers_host import LoadedModel
from vlmguard.engines.transformers_text import Detokenizer, StopScanner
from vlmguard.engines.transformers_weights import is_out_of_memory
from vlmguard.errors import EngineError, EngineRejected
from vlmguard.types import Chat, Completion, TokenLogprob, Usage

_CONTINUED = 16  # tokens of a continued text that decide how its next one is spelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request on its way to the host's thread.

    Attributes:
        spec: of the engine, for messages.
        adapter: folder of the LoRA to answer with; ``None`` for the bare base.
        max_pixels: bigger pictures are scaled down; ``None`` leaves them.
        show: called in that thread with every new piece of text.
        cancelled: set it to stop after the token at hand.
    """

    spec: str
    chat: Chat
    sampling: Sampling
    adapter: Path | None
    max_pixels: int | None
    show: Callable[[str], None]
    cancelled: threading.Event

    def run(self, loaded: LoadedModel) -> Completion:
        """Answer. Runs in the host's thread.

        Raises:
            EngineError: see the tree in `vlmguard.errors`.
            InputError: a picture cannot be decoded.
            ConfigError: the adapter does not fit.
        """
        inputs = loaded.format.encode(self.chat, max_pixels=self.max_pixels)
        prompt: list[int] = inputs["input_ids"][0].tolist()
        room = self._room(len(prompt), loaded.context)
        answer = _Answer(self, loaded, prompt)
        with loaded.adapters.use(self.adapter):
            if not self.cancelled.is_set():
                self._generate(loaded.model, inputs, answer, room)
        return answer.finish()

    def _room(self, prompt: int, context: int | None) -> int:
        """How many tokens the answer may have."""
        if context is None:
            return self.sampling.max_tokens
        if prompt >= context:
            raise EngineRejected(
                f"{self.spec}: the prompt has {prompt} tokens and the model's context {context}; "
                "shorten it, or send fewer or smaller pictures",
                context_exceeded=True,
            )
        return min(self.sampling.max_tokens, context - prompt)

    def _generate(self, model: Any, inputs: dict[str, Any], answer: _Answer, room: int) -> None:
        try:
            model.generate(
                **{key: _moved(value, model) for key, value in inputs.items()},
                max_new_tokens=room,
                do_sample=False,  # `_Answer` draws
                logits_processor=LogitsProcessorList([_Choose(answer)]),
                stopping_criteria=StoppingCriteriaList([_Stop(answer)]),
            )
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            if is_out_of_memory(error):
                raise
            raise EngineError(f"{self.spec} failed: {error}") from error


def _moved(value: Any, model: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


class _Answer:
    """What was generated so far, and how to go on."""

    def __init__(self, job: Job, loaded: LoadedModel, prompt: Sequence[int]) -> None:
        self._job = job
        self._tokenizer = loaded.tokenizer
        self._eos = loaded.eos
        self._prompt = len(prompt)
        continued = job.chat.messages[-1].role == "assistant"
        self._detokenizer = Detokenizer(self._decode, prompt[-_CONTINUED:] if continued else ())
        self._scanner = StopScanner(job.sampling.stop)
        self._draw = _drawing(job.sampling)
        self._pieces: list[str] = []
        self._logprobs: list[tuple[int, TokenLogprob]] = []  # with the token's place in the text
        self._written = 0  # characters, with those the scanner holds back
        self._tokens = 0
        self.done = False

    def step(self, logits: torch.Tensor) -> int:
        """Choose the next token. ``logits``: one number a token of the vocabulary, float32."""
        if logits.isnan().any():
            raise EngineError(
                f"{self._job.spec}: the model computed NaN; load it with dtype=bfloat16 or float32"
            )
        token = self._draw(logits)
        self._tokens += 1
        if token in self._eos:
            self.done = True
            return token
        if self._job.sampling.top_logprobs:
            self._logprobs.append((self._written, self._logprob(token, logits)))
        self._write(self._detokenizer.push(token))
        self.done = self._scanner.found
        return token

    @property
    def over(self) -> bool:
        return self.done or self._job.cancelled.is_set()

    def finish(self) -> Completion:
        self._write(self._detokenizer.flush())
        self._show(self._scanner.flush())
        text = "".join(self._pieces)
        logprobs = tuple(
            entry for at, entry in self._logprobs if not self._scanner.found or at < len(text)
        )
        return Completion(
            text=text,
            finish_reason="stop" if self.done or self._scanner.found else "length",
            usage=Usage(prompt_tokens=self._prompt, completion_tokens=self._tokens),
            logprobs=logprobs if self._job.sampling.top_logprobs else None,
            model=self._job.spec,
        )

    def _write(self, text: str) -> None:
        self._written += len(text)
        self._show(self._scanner.push(text))

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._job.show(text)

    def _logprob(self, token: int, logits: torch.Tensor) -> TokenLogprob:
        """Of the model itself, at temperature 1, however the token was drawn."""
        logprobs = torch.log_softmax(logits, dim=-1)
        best = logprobs.topk(min(self._job.sampling.top_logprobs, len(logprobs)))
        return TokenLogprob(
            token=self._spell(token),
            logprob=float(logprobs[token]),
            top=tuple(
                (self._spell(other), value)
                for other, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ),
        )

    def _spell(self, token: int) -> str:
        return self._detokenizer.spell(token) or str(self._tokenizer.convert_ids_to_tokens(token))

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _drawing(sampling: Sampling) -> Callable[[torch.Tensor], int]:
    """How to choose a token from its logits.

    It has a generator of its own, so that neither this draw nor anyone else's disturbs the other's.
    """
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax())
    warpers: Any = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    generator = torch.Generator()  # on the CPU: the same numbers whatever the model runs on
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    unused = torch.empty(1, 0, dtype=torch.long)  # the tokens so far, which these do not look at

    def draw(logits: torch.Tensor) -> int:
        # By the inverse of the distribution function: ten times faster here than multinomial.
        cumulated = warpers(unused, logits[None])[0].softmax(dim=-1).double().cumsum(dim=-1)
        point = torch.rand(1, generator=generator, dtype=torch.double).to(logits.device)
        return int(torch.searchsorted(cumulated, point * cumulated[-1], right=True))

    return draw


class _Choose(LogitsProcessor):
    """Leaves the token that the answer chose as the only one possible."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self._answer.step(scores[0].float())
        forced = torch.full_like(scores, -torch.inf)
        forced[0, token] = 0
        return forced


class _Stop(StoppingCriteria):
    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    def __call__(
        self, input_ids: torch.Tensor, _scores: torch.Tensor, **_kwargs: Any
    ) -> torch.Tensor:
        return torch.tensor([self._answer.over], device=input_ids.device)
