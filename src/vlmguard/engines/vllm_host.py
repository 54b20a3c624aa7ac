"""The thread that works with a vLLM model: calls gathered into batches, and its types beside ours.

Through vLLM's documented interface for batches: ``LLM.chat``, ``SamplingParams``,
``StructuredOutputsParams``. Calls that come while a batch is at work make up the next one.

Sources: https://docs.vllm.ai/en/latest/api/vllm/entrypoints/llm/,
https://docs.vllm.ai/en/latest/features/structured_outputs/ and
https://docs.vllm.ai/en/latest/api/vllm/outputs/.
"""

from __future__ import annotations

import gc
import importlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vlmguard.engines.base import Sampling
from vlmguard.errors import ConfigError, EngineRejected, EngineUnavailable, MissingExtra
from vlmguard.models.notices import say
from vlmguard.types import Completion, TokenLogprob, Usage

_GATHER_S = 0.01  # what comes within this time of the first call goes into the same batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call.

    Attributes:
        messages: in the OpenAI format; ``None`` only loads the model.
        sampling: how to answer.
        continued: the last message is the beginning of the answer.
        future: of the answer.
    """

    messages: list[dict[str, Any]] | None
    sampling: Sampling = field(default_factory=Sampling)
    continued: bool = False
    future: Future[Completion] = field(default_factory=Future)


class Host:
    """The one thread that works with a model; a ``vllm.LLM`` may not be used by several.

    A daemon, so that a process that ends does not wait for a batch.

    Args:
        model: name on the Hugging Face Hub, or a folder.
        spec: for messages.
        arguments: of ``vllm.LLM``, besides the model.
    """

    def __init__(self, model: str, spec: str, arguments: Mapping[str, object]) -> None:
        self._model = model
        self._spec = spec
        self._arguments = arguments
        self._llm: Any = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed: Future[None] = Future()
        threading.Thread(target=self._run, name=spec, daemon=True).start()

    def give(self, job: Job) -> None:
        """Work on it soon; its future gets the answer, or why there is none."""
        self._jobs.put(job)

    def close(self) -> Future[None]:
        """Work on what was given before, then free the model; the future is done after that."""
        self._jobs.put(None)
        return self._closed

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._gather()
            try:
                self._work(batch)
            except BaseException as error:  # noqa: BLE001  # whatever it is, the callers hear of it
                _fail(batch, error)
        self._llm = None
        gc.collect()  # vLLM ends its processes with the object
        self._closed.set_result(None)

    def _gather(self) -> tuple[list[Job], bool]:
        """The jobs that wait, and whether there will be more."""
        batch: list[Job] = []
        job = self._jobs.get()
        time.sleep(_GATHER_S)
        while job is not None:
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _work(self, batch: Sequence[Job]) -> None:
        if batch and self._llm is None:
            self._llm = _load(self._model, self._spec, self._arguments)
        for job in batch:
            if job.messages is None:
                job.future.set_result(Completion(text="", finish_reason="stop"))
        for continued in (False, True):
            alike = [job for job in batch if job.messages and job.continued is continued]
            if alike:
                self._answer(alike)

    def _answer(self, batch: Sequence[Job]) -> None:
        try:
            answers = self._chat(batch)
        except EngineRejected as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            # One of them was refused: the others shall not suffer for it.
            middle = len(batch) // 2
            self._answer(batch[:middle])
            self._answer(batch[middle:])
        else:
            for job, answer in zip(batch, answers, strict=True):
                job.future.set_result(completion(answer, job.sampling, self._spec))

    def _chat(self, batch: Sequence[Job]) -> list[Any]:
        """The answers, in order."""
        continued = batch[0].continued
        try:
            answers: list[Any] = self._llm.chat(
                [job.messages for job in batch],
                sampling_params=[sampling_params(job.sampling) for job in batch],
                use_tqdm=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
        except (ValueError, TypeError) as error:  # too long, a template that refuses roles, …
            raise EngineRejected(f"{self._spec} refused the request: {error}") from error
        except Exception as error:
            raise EngineUnavailable(f"{self._spec} failed: {error!r:.500}") from error
        if len(answers) != len(batch):
            raise EngineUnavailable(
                f"{self._spec} gave {len(answers)} answers to {len(batch)} requests"
            )
        return answers


def _load(model: str, spec: str, arguments: Mapping[str, object]) -> Any:
    try:
        vllm: Any = importlib.import_module("vllm")
        sampling: Any = importlib.import_module("vllm.sampling_params")
    except ImportError as error:
        if error.name != "vllm":
            raise ConfigError(f"{spec}: vLLM cannot be imported: {error}") from error
        raise MissingExtra("the vLLM engine", "vllm") from None
    if not hasattr(sampling, "StructuredOutputsParams"):
        raise ConfigError(
            f"{spec}: vLLM {vllm.__version__} is too old: pip install -U 'vlmguard-r1[vllm]'"
        )
    say(f"loading {model} with vLLM …")
    given = dict(arguments)
    if given.get("tensor_parallel_size", 1) != 1:
        # Not Ray's, which would ask the cluster for GPUs that this worker has already.
        given["distributed_executor_backend"] = "mp"
    try:
        return vllm.LLM(model=model, **given)
    except Exception as error:
        raise ConfigError(f"{spec}: vLLM cannot load it: {error}") from error


def _fail(batch: Sequence[Job], error: BaseException) -> None:
    for job in batch:
        if not job.future.done():
            job.future.set_exception(error)


def sampling_params(sampling: Sampling) -> Any:
    """``vllm.SamplingParams`` of a call.

    Raises:
        ValueError: vLLM refuses a value.
    """
    vllm: Any = importlib.import_module("vllm.sampling_params")
    schema = sampling.json_schema
    return vllm.SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=list(sampling.stop),
        logprobs=sampling.top_logprobs or None,
        structured_outputs=None
        if schema is None
        else vllm.StructuredOutputsParams(json=dict(schema)),
    )


def completion(answer: Any, sampling: Sampling, model: str) -> Completion:
    """A completion out of a ``vllm.RequestOutput`` with one answer."""
    best = answer.outputs[0]
    return Completion(
        text=best.text,
        finish_reason=best.finish_reason or "stop",
        usage=Usage(
            prompt_tokens=len(answer.prompt_token_ids or ()),
            completion_tokens=len(best.token_ids),
            cached_tokens=answer.num_cached_tokens or 0,
        ),
        logprobs=_logprobs(best, sampling.top_logprobs) if sampling.top_logprobs else None,
        model=model,
    )


def _logprobs(best: Any, most: int) -> tuple[TokenLogprob, ...]:
    """For each place vLLM tells the likeliest tokens, and the one that it took, by their ids."""
    places = []
    for taken, told in zip(best.token_ids, best.logprobs or (), strict=True):
        likeliest = sorted(told.values(), key=lambda seen: -seen.logprob)[:most]
        places.append(
            TokenLogprob(
                token=told[taken].decoded_token or "",
                logprob=told[taken].logprob,
                top=tuple((seen.decoded_token or "", seen.logprob) for seen in likeliest),
            )
        )
    return tuple(places)
