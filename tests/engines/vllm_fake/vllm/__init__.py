"""What vLLM documents of its interface for batches, with `tests.synthesis.brain` for a model.

Put the folder above this one on the path to import it as ``vllm``. Only names and parameters that
vLLM 0.12 and later have are here, so that a call with others fails as it would there. It is not
vLLM: it shows that we build the right requests, not that a model answers them.

``VLLM_FAKE_LOG`` names a file to which each loading adds a line: process id, model, arguments.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.synthesis.brain import think

from .sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
__version__ = "0.12.0"

_LONGEST = 20_000  # characters


@dataclass
class Logprob:
    """Of the same name: vllm.logprobs.Logprob."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """Of the same name: vllm.outputs.CompletionOutput."""

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    """Of the same name: vllm.outputs.RequestOutput."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int | None = None


@dataclass
class Asked:
    """One call of `LLM.chat`."""

    messages: list[list[dict[str, Any]]]
    sampling_params: list[SamplingParams]
    add_generation_prompt: bool
    continue_final_message: bool
    thread: int = field(default_factory=threading.get_ident)


class LLM:
    """Of the same name: vllm.LLM.

    Attributes:
        made: all that there are.
        asked: calls of `chat`.
        failure: raised by the next calls of `chat`, if set.
    """

    made: list[LLM] = []  # noqa: RUF012
    failure: Exception | None = None

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        **kwargs: Any,
    ) -> None:
        if set(kwargs) - {"max_model_len", "distributed_executor_backend"}:
            raise TypeError(f"unexpected keyword arguments: {kwargs}")
        if model == "org/missing":
            raise ValueError("Repo id not found: org/missing")
        self.model = model
        self.arguments = {
            "tensor_parallel_size": tensor_parallel_size,
            "dtype": dtype,
            "quantization": quantization,
            "revision": revision,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "trust_remote_code": trust_remote_code,
            **kwargs,
        }
        self.asked: list[Asked] = []
        LLM.made.append(self)
        if path := os.environ.get("VLLM_FAKE_LOG"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps([os.getpid(), model, self.arguments]) + "\n")

    def chat(
        self,
        messages: list[list[dict[str, Any]]],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[RequestOutput]:
        """Of the same name: vllm.LLM.chat."""
        assert isinstance(sampling_params, list), "one for each conversation"
        assert not use_tqdm
        if add_generation_prompt and continue_final_message:
            raise ValueError("Cannot set both")
        self.asked.append(
            Asked(
                messages=messages,
                sampling_params=sampling_params,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        )
        if LLM.failure is not None:
            raise LLM.failure
        for conversation in messages:
            if sum(len(_text(message)) for message in conversation) > _LONGEST:
                raise ValueError("The prompt is longer than the maximum model length")
        return [
            _answer(conversation, params)
            for conversation, params in zip(messages, sampling_params, strict=True)
        ]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _answer(conversation: list[dict[str, Any]], params: SamplingParams) -> RequestOutput:
    system = _text(conversation[0]) if conversation[0]["role"] == "system" else ""
    rest = [_text(message) for message in conversation if message["role"] != "system"]
    words = think(system, rest).split(" ")
    kept = words[: params.max_tokens]
    logprobs = None
    if params.logprobs:
        others = {
            1000 + n: Logprob(-2.0 - n, n + 2, f"other{n}") for n in range(params.logprobs - 1)
        }
        logprobs = [{at: Logprob(-0.5, 1, word), **others} for at, word in enumerate(kept)]
    output = CompletionOutput(
        index=0,
        text=" ".join(kept),
        token_ids=range(len(kept)),
        cumulative_logprob=None,
        logprobs=logprobs,
        finish_reason="stop" if len(kept) == len(words) else "length",
    )
    return RequestOutput(
        request_id="0",
        prompt=None,
        prompt_token_ids=list(range(sum(map(len, rest)) // 4)),
        outputs=[output],
        num_cached_tokens=3,
    )
