"""Every benchmark as a task of Inspect's.

::

    inspect eval vlmguard/figstep --model vlmguard/smollm2 \\
        -T data=benchmarks -T defence=guard -T judge=refusal
    inspect eval vlmguard/xstest --model openai/gpt-4o --model-role rewriter=ollama/llava \\
        -T data=benchmarks -T defence=guard:inspect:role/rewriter

Target, rewriter and judge may be any model of Inspect's; ``inspect:role/NAME`` is what
``--model-role NAME=…`` names. Inspect drives, caches and logs; the benchmarks, defences and judges
are those of ``vlmguard eval``.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from inspect_ai import Task, task
from inspect_ai._util.package import get_installed_package_name
from inspect_ai.dataset import MemoryDataset
from inspect_ai.model import (
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from pydantic import TypeAdapter

from vlmguard.defences import open_defence
from vlmguard.engines import Capability, Engine
from vlmguard.errors import VLMGuardError
from vlmguard.evals.answering import Contender, Entry, respond
from vlmguard.evals.benchmarks import BENCHMARKS
from vlmguard.evals.described import DescribedPictures
from vlmguard.evals.inspect_engine import InspectEngine
from vlmguard.evals.inspect_provider import EngineAPI
from vlmguard.evals.inspect_samples import from_state, to_inspect
from vlmguard.evals.inspect_wire import PrerequisiteError, active_config, from_config
from vlmguard.evals.judges import open_judge
from vlmguard.evals.lineup import open_suites, with_policy
from vlmguard.evals.plan import DEFAULT_POLICY, EvalPlan
from vlmguard.evals.types import Answer, Judgement

ANSWER = TypeAdapter(Answer)
"""Writes and reads answers as plain JSON values."""
_DEFAULT_JUDGE = "refusal"


def _named(name: str) -> str:
    """The registry name of something here, ``vlmguard/NAME``.

    Inspect puts the package's name before it, but not where the package is installed editable
    under a distribution of another name.
    """
    return name if get_installed_package_name(_named) else f"vlmguard/{name}"


# --- Solver ----------------------------------------------------------------------------------


@solver(name=_named("defended"))
def defended(defence: str = "none", policy: str = DEFAULT_POLICY) -> Solver:
    """Answers a sample with the model behind a defence.

    Args:
        defence: its spec, as ``vlmguard eval --defence`` takes it.
        policy: the guard's, where its spec names none.
    """
    spec = with_policy(defence, policy)
    perceiver = DescribedPictures()
    opened: dict[str, Contender] = {}

    def contender() -> Contender:
        """The model of the run behind the defence, opened once a model."""
        model = get_model()
        if str(model) not in opened:
            engine = _engine(model)
            try:
                guarding = open_defence(spec, perceiver=perceiver, target=engine)
            except VLMGuardError as error:
                raise PrerequisiteError(str(error)) from error
            opened[str(model)] = Contender(
                entry=Entry(target=str(model), defence=spec),
                target=engine,
                defence=guarding,
                perceiver=perceiver,
            )
        return opened[str(model)]

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001
        behind, sample = contender(), from_state(state)
        chat = await asyncio.to_thread(sample.chat)
        answer = await respond(behind, sample, chat, from_config(active_config(get_model())))
        usage = answer.usage
        state.output = ModelOutput.from_content(model=answer.target, content=answer.text)
        state.output.usage = ModelUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )
        state.messages.append(state.output.message)
        state.metadata["answer"] = ANSWER.dump_python(answer, mode="json")
        state.completed = True
        return state

    return solve


def _engine(model: Model) -> Engine:
    """A model of Inspect's as an engine; of one of ours it is known what it can do."""
    can = frozenset({Capability.VISION})
    if isinstance(model.api, EngineAPI):
        passed_on = {Capability.VISION, Capability.LOGPROBS, Capability.JSON_SCHEMA}
        can = model.api.engine.capabilities & passed_on
    return InspectEngine(lambda: model, capabilities=can, spec=f"inspect:{model}")


# --- Scorer ----------------------------------------------------------------------------------


@metric(name=_named("means"))
def means() -> Metric:
    """The mean of every metric of a judge over the samples that have it."""

    def compute(scores: list[SampleScore]) -> Value:
        found: dict[str, list[float]] = defaultdict(list)
        for each in scores:
            values = each.score.value
            if isinstance(values, dict):
                for name, value in values.items():
                    if isinstance(value, int | float):
                        found[name].append(float(value))
        return {name: fmean(values) for name, values in found.items()}

    return compute


@scorer(metrics=[means()], name=_named("judged"))
def judged(judge: str = _DEFAULT_JUDGE) -> Scorer:
    """Scores answers by one of our judges; what it cannot score stays unscored.

    Args:
        judge: its spec, as ``vlmguard eval --judge`` takes it.
    """
    opened = open_judge(judge)

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001
        told = state.metadata.get("answer")
        answer = _bare_answer(state) if told is None else ANSWER.validate_python(told)
        if answer.empty:
            return Score.unscored(reason="no_response", explanation="the answer is empty")
        return to_score(await opened.judge(from_state(state), answer), answer)

    return score


def to_score(judgement: Judgement, answer: Answer) -> Score:
    """A judgement as Inspect's score."""
    about = {"judge": judgement.judge}
    if judgement.unscored is not None:
        return Score.unscored(
            reason="grader_failed", explanation=judgement.unscored, metadata=about
        )
    return Score(
        value=dict(judgement.metrics),
        answer=answer.text,
        explanation=judgement.explanation or None,
        metadata=about,
    )


def _bare_answer(state: TaskState) -> Answer:
    """The answer of a sample that another solver answered."""
    return Answer(
        benchmark=state.metadata["benchmark"],
        sample_id=str(state.sample_id),
        target=str(state.model),
        defence="none",
        text=state.output.completion,
    )


# --- Tasks -----------------------------------------------------------------------------------


def _open_task(
    spec: str, *, data: str | None, defence: str, judge: str, policy: str, limit: int | None
) -> Task:
    try:
        plan = EvalPlan(benchmarks=(spec,), data=None if data is None else Path(data), limit=limit)
        (suite,) = open_suites(plan)
        judges = [judged(each.strip()) for each in judge.split(",")]
        solving = defended(defence, policy)
        return Task(
            dataset=MemoryDataset(
                [to_inspect(sample) for sample in suite.samples], name=suite.name
            ),
            solver=solving,
            scorer=judges,
            config=GenerateConfig(temperature=0.0, max_tokens=512),
            fail_on_error=False,  # a failed sample is recorded, the run goes on
        )
    except VLMGuardError as error:
        raise PrerequisiteError(str(error)) from error


def _register(name: str) -> Callable[..., Task]:
    """The task of one benchmark."""

    def benchmark_task(
        *,
        data: str | None = None,
        defence: str = "none",
        judge: str = _DEFAULT_JUDGE,
        policy: str = DEFAULT_POLICY,
        options: str = "",
        limit: int | None = None,
    ) -> Task:
        spec = f"{name}?{options}" if options else name
        return _open_task(spec, data=data, defence=defence, judge=judge, policy=policy, limit=limit)

    benchmark_task.__name__ = name.replace("-", "_")
    benchmark_task.__doc__ = BENCHMARKS[name].title
    registered: Callable[..., Task] = task(name=_named(name))(benchmark_task)
    return registered


@task(name=_named("custom"))
def custom(
    *,
    path: str,
    defence: str = "none",
    judge: str = _DEFAULT_JUDGE,
    policy: str = DEFAULT_POLICY,
    limit: int | None = None,
) -> Task:
    """Items of one's own: a folder or a JSONL file."""
    return _open_task(
        f"custom:{path}", data=None, defence=defence, judge=judge, policy=policy, limit=limit
    )


tasks: dict[str, Callable[..., Task]] = {name: _register(name) for name in BENCHMARKS}
"""Benchmark → its task."""
