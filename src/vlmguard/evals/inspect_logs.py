"""A run's answers and judgements as logs of Inspect's, for ``inspect view``.

One log a target, defence and benchmark. They are made from the store, so they can be written again
at any time, of a killed run as well. Pictures are in them, large ones scaled down.
"""

from __future__ import annotations

import io
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalMetric,
    EvalPlan,
    EvalPlanStep,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
    write_eval_log,
)
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentText,
    ModelOutput,
    ModelUsage,
)
from PIL import Image as Pillow

from vlmguard.errors import VLMGuardError
from vlmguard.evals.inspect_samples import sample_metadata
from vlmguard.evals.inspect_tasks import ANSWER, to_score
from vlmguard.evals.types import Answer, Judgement, Results, Sample
from vlmguard.types import Image

_LARGE = 100_000  # bytes; every log holds the pictures of its benchmark once more
_SIDE = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    sample: Sample
    answer: Answer
    judgements: Sequence[Judgement]


def write_logs(folder: Path, results: Results) -> list[Path]:
    """Write the logs of a run, in place of those that an earlier call wrote.

    Returns:
        The files.
    """
    groups: dict[tuple[str, str, str], list[_Row]] = defaultdict(list)
    for view in results.views:
        for answer, judgements in view.answers:
            key = (answer.target, view.sample.benchmark, answer.defence)
            groups[key].append(_Row(sample=view.sample, answer=answer, judgements=judgements))
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    names = []
    for number, rows in enumerate(groups.values(), start=1):
        first = rows[0].answer
        told = _slug(f"{first.benchmark}_{first.target}_{first.defence}")
        names.append(f"{number:03}_{told}.eval")
        write_eval_log(_log(rows, results), fresh / names[-1])
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return [folder / name for name in names]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text)[:120]


def _log(rows: Sequence[_Row], results: Results) -> EvalLog:
    first = rows[0].answer
    now = datetime.now(UTC).isoformat(timespec="seconds")
    judges = list(dict.fromkeys(said.judge for row in rows for said in row.judgements))
    failed = sum(row.answer.error is not None for row in rows)
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=now,
            task=f"vlmguard/{first.benchmark}",
            task_args={"defence": first.defence},
            model=f"vlmguard/{first.target}",
            dataset=EvalDataset(
                name=first.benchmark,
                samples=len({row.sample.id for row in rows}),
                sample_ids=list(dict.fromkeys(row.sample.id for row in rows)),
            ),
            config=EvalConfig(epochs=1 + max(row.answer.repeat for row in rows)),
            packages=dict(results.versions),
            metadata={
                "command": results.command,
                "dataset_sha256": results.dataset_hashes.get(first.benchmark, ""),
            },
        ),
        plan=EvalPlan(
            steps=[EvalPlanStep(solver="vlmguard/defended", params={"defence": first.defence})]
        ),
        results=EvalResults(
            total_samples=len(rows),
            completed_samples=len(rows) - failed,
            scores=[_summary(judge, rows) for judge in judges],
        ),
        stats=EvalStats(
            started_at=now, completed_at=now, model_usage={f"vlmguard/{first.target}": _sum(rows)}
        ),
        samples=[_sample(row) for row in rows],
    )


def _summary(judge: str, rows: Iterable[_Row]) -> EvalScore:
    values: dict[str, list[float]] = defaultdict(list)
    unscored = 0
    scored = 0
    for row in rows:
        for said in row.judgements:
            if said.judge != judge:
                continue
            unscored += said.unscored is not None
            scored += said.unscored is None
            for name, value in said.metrics.items():
                values[name].append(value)
    return EvalScore(
        name=judge,
        scorer="vlmguard/judged",
        params={"judge": judge},
        scored_samples=scored,
        unscored_samples=unscored,
        metrics={name: EvalMetric(name=name, value=fmean(each)) for name, each in values.items()},
    )


def _sample(row: _Row) -> EvalSample:
    answer = row.answer
    asked = ChatMessageUser(content=_content(row.sample))
    output = ModelOutput.from_content(model=answer.target, content=answer.text)
    output.usage = _usage(answer)
    messages: list[ChatMessage] = [asked]
    if answer.rewrite is not None:
        messages.append(
            ChatMessageUser(content=f"[rewritten by {answer.defence}]\n{answer.rewrite}")
        )
    messages.append(ChatMessageAssistant(content=answer.text, model=answer.target))
    error = None
    if answer.error is not None:
        error = EvalError(message=answer.error, traceback="", traceback_ansi="")
    return EvalSample(
        id=row.sample.id,
        epoch=answer.repeat + 1,
        input=[asked],
        target=row.sample.kind,
        messages=messages,
        output=output,
        scores={said.judge: to_score(said, answer) for said in row.judgements},
        metadata={
            **sample_metadata(row.sample),
            "answer": ANSWER.dump_python(answer, mode="json"),
        },
        model_usage={f"vlmguard/{answer.target}": _usage(answer)},
        total_time=answer.latency_ms / 1000,
        working_time=answer.latency_ms / 1000,
        error=error,
    )


def _content(sample: Sample) -> list[Content]:
    content: list[Content] = []
    for picture in sample.pictures:
        try:
            content.append(ContentImage(image=_small(picture.load()).data_url()))
        except (VLMGuardError, OSError) as error:
            content.append(ContentText(text=f"[a picture that cannot be shown: {error}]"))
    content.append(ContentText(text=sample.prompt))
    return content


def _small(image: Image) -> Image:
    """The picture, or a smaller JPEG of a large one."""
    if len(image.data) <= _LARGE:
        return image
    with Pillow.open(io.BytesIO(image.data)) as opened:
        scaled = opened.convert("RGB")
    scaled.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    scaled.save(buffer, "JPEG", quality=80)
    return Image(data=buffer.getvalue(), media_type="image/jpeg", source=image.source)


def _usage(answer: Answer) -> ModelUsage:
    usage = answer.usage
    return ModelUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _sum(rows: Iterable[_Row]) -> ModelUsage:
    return sum((_usage(row.answer) for row in rows), ModelUsage())
