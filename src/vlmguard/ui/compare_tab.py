"""The tab that puts one request before several defences."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vlmguard.defences.opening import KNOWN_DEFENCES
from vlmguard.engines import Sampling
from vlmguard.errors import VLMGuardError
from vlmguard.images import load_image
from vlmguard.types import Chat, Reply
from vlmguard.ui import render
from vlmguard.ui.examples import EXAMPLES
from vlmguard.ui.guard_tab import model_choice, uploaded, veil_script
from vlmguard.ui.models import Models
from vlmguard.ui.runs import Answer

_log = logging.getLogger(__name__)
READY = tuple(facts.name for facts in KNOWN_DEFENCES if "*" not in facts.options)
"""Defences that need no options."""
_AT_FIRST = ("none", "self-reminder", "figstep-prompt", "guard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one defence made of the request.

    Attributes:
        reply: its answer; ``None`` when there is none (yet).
        problem: why not.
        running: it is at work.
        elapsed_ms: all of its time.
    """

    reply: Reply | None = None
    problem: str = ""
    running: bool = False
    elapsed_ms: float = 0.0


async def compared(
    models: Models, chat: Chat, target: str, specs: Sequence[str], sampling: Sampling
) -> AsyncIterator[Mapping[str, Outcome]]:
    """The outcome of each defence, whenever one begins or ends. One after the other, for time."""
    engine = models.target(target)
    outcomes = {spec: Outcome() for spec in specs}
    for spec in specs:
        outcomes[spec] = Outcome(running=True)
        yield dict(outcomes)
        start = time.perf_counter()
        try:
            defence = models.defence(spec, target=target)
            reply = await defence.respond(chat, engine, sampling)
            outcomes[spec] = Outcome(reply=reply, elapsed_ms=(time.perf_counter() - start) * 1000)
        except VLMGuardError as error:
            outcomes[spec] = Outcome(problem=str(error))
        except Exception as error:  # noqa: BLE001  # whatever it was, it is shown
            _log.exception("an unexpected error of the defence %s", spec)
            outcomes[spec] = Outcome(problem=f"An unexpected error: {type(error).__name__}")
    yield dict(outcomes)


def columns(outcomes: Mapping[str, Outcome], run: str) -> str:
    """A column for each defence. Answers are veiled unless the guard found the request harmless."""
    found = [
        rewrite.verdict
        for outcome in outcomes.values()
        if outcome.reply is not None
        for rewrite in outcome.reply.trace.rewrites
    ]
    harmless = bool(found) and "risky" not in found
    told = [set(outcome.reply.trace.notes) for outcome in outcomes.values() if outcome.reply]
    shared = set.intersection(*told) if len(told) > 1 else set()
    cards = (_card(spec, outcome, harmless, shared, run) for spec, outcome in outcomes.items())
    notes = "".join(f'<p class="vg-quiet">{escape(note)}</p>' for note in sorted(shared))
    return f'<div class="vg-columns">{"".join(cards)}</div>{notes}'


def _card(
    spec: str,
    outcome: Outcome,
    harmless: bool,  # noqa: FBT001
    shared: AbstractSet[str],
    run: str,
) -> str:
    reply = outcome.reply
    if reply is None:
        shown = Answer(problem=outcome.problem, done=True)
        empty = "at work …" if outcome.running else "waiting"
        body = render.answer(spec, shown, veiled=False, run=run, empty=empty)
        return f"<div>{body}</div>"
    trace = reply.trace
    guarded = bool(trace.rewrites) and all(each.action != "monitor" for each in trace.rewrites)
    body = render.answer(
        spec,
        Answer(text=reply.completion.text or "(empty)", done=True),
        veiled=not (harmless or guarded),
        run=run,
    )
    added = trace.defence_usage
    rows = [
        ("Time", f"{outcome.elapsed_ms / 1000:.2f} s"),
        ("Calls added", str(trace.calls)),
        ("Target's tokens", f"{trace.usage.prompt_tokens} in, {trace.usage.completion_tokens} out"),
        ("Tokens added", f"{added.prompt_tokens} in, {added.completion_tokens} out"),
    ]
    if trace.rewrites:
        last = trace.rewrites[-1]
        rows.append(("Decision", f"{last.verdict}, risk {last.risk:.2f}, {last.action}"))
    rows += [("Note", note) for note in trace.notes if note not in shared]
    return f"<div>{body}{render.facts(rows)}</div>"


def compare_tab(models: Models) -> None:
    """Build the tab within the current `gr.Blocks`."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = uploaded("Picture to compare with", "vg-compare-picture")
            prompt = gr.Textbox(label="Prompt to compare with", lines=3)
        with gr.Column(scale=3, min_width=300):
            target = model_choice("Target of the comparison", models.targets, free=models.any_model)
            chosen = gr.CheckboxGroup(list(READY), value=list(_AT_FIRST), label="Defences")
            others = gr.Textbox(
                label="Further defences, one spec a line",
                placeholder="guard:smollm2?policy=strict",
                lines=2,
                visible=models.any_model,
            )
            with gr.Row():
                start = gr.Button("Compare", variant="primary", elem_id="vg-compare")
                stop = gr.Button("Stop the comparison")
    problem = gr.HTML("")
    shown = gr.HTML("", js_on_load=veil_script(), elem_id="vg-columns")
    gr.HTML(
        '<p class="vg-quiet">The defences run one after the other. The first may pay for loading '
        "the models and for reading the prompt, which engines remember.</p>"
    )
    gr.Examples(
        [[example.path, example.prompt] for example in EXAMPLES],
        [picture, prompt],
        label="Examples to compare with",
        example_labels=[example.title for example in EXAMPLES],
        api_visibility="private",
    )

    async def compare(
        file: str | None, text: str, spec: str, names: list[str], more: str
    ) -> AsyncIterator[tuple[Any, Any]]:
        typed = more.splitlines() if models.any_model and more else []
        specs = [*names, *(line.strip() for line in typed if line.strip())]
        run = secrets.token_hex(4)
        try:
            if not specs:
                yield render.problem("Choose at least one defence."), ""
                return
            chat = Chat.of(text or "", [load_image(Path(file))] if file else [])
            sampling = Sampling(max_tokens=200)
            target_spec = (spec or "").strip()
            async for outcomes in compared(models, chat, target_spec, specs, sampling):
                yield "", columns(outcomes, run)
        except VLMGuardError as error:
            yield render.problem(str(error)), ""

    comparing = start.click(
        compare,
        [picture, prompt, target, chosen, others],
        [problem, shown],
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=2,
    )
    stop.click(None, cancels=[comparing], api_visibility="private")
