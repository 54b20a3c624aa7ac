"""The tab that shows one request on its way through the guard."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from vlmguard.errors import VLMGuardError
from vlmguard.rewriting import load_policy
from vlmguard.ui import render
from vlmguard.ui.examples import EXAMPLES
from vlmguard.ui.models import Models
from vlmguard.ui.runs import Ask, Run, Snapshot
from vlmguard.ui.settings import UiSettings
from vlmguard.ui.watching import Memory

_SHARED: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": 4,
}


@dataclass(slots=True, kw_only=True)
class Visit:
    """What a visitor asked last, and what the models answered.

    Attributes:
        id: of the run, so that the page knows which veils are still the same.
    """

    ask: Ask
    memory: Memory = field(default_factory=Memory)
    id: str = field(default_factory=lambda: secrets.token_hex(4))


@cache
def veil_script() -> str:
    """The script of elements with veils."""
    return files("vlmguard.ui").joinpath("veil.js").read_text("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The components by which models are chosen; the slider stands below the risk."""

    target: gr.Dropdown
    rewriter: gr.Dropdown
    policy: gr.Dropdown
    threshold: gr.Slider


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """The components that show a run, in the order in which handlers return their values."""

    status: gr.HTML
    gauge: gr.HTML
    reasons: gr.HTML
    rewritten: gr.HighlightedText
    picture: gr.AnnotatedImage
    objects: gr.Label
    evidence: gr.HTML
    unguarded: gr.HTML
    guarded: gr.HTML

    def all(self) -> list[Any]:
        """As outputs of a handler."""
        return [getattr(self, name) for name in self.__slots__]


def uploaded(label: str, name: str) -> gr.Image:
    """Where a picture is dropped, an element of that name; gives the file as it came."""
    picture = gr.Image(
        label=label,
        elem_id=name,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=250,
        buttons=[],
    )
    # Gradio would open the file first and answer a damaged one with an error of Pillow's. Ours
    # says what is wrong, and looks at the very bytes that were dropped.
    picture.preprocess = _as_uploaded  # type: ignore[method-assign]
    return picture


def _as_uploaded(payload: Any) -> str | None:
    return None if payload is None else str(payload.path)


def guard_tab(models: Models, settings: UiSettings) -> None:
    """Build the tab within the current `gr.Blocks`."""
    visit = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            picture = uploaded("Picture", "vg-picture")
            prompt = gr.Textbox(label="Prompt", lines=3, placeholder="Ask about the picture …")
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="vg-run", min_width=120)
                stop = gr.Button("Stop", min_width=80)
            _examples(picture, prompt)
            choices = _choices(models, settings)
        beside = gr.Column(scale=3, min_width=320)
    views = _views(beside, choices.threshold)

    async def think(  # noqa: PLR0917  # Gradio gives values by place
        shown: str | None, text: str, target: str, rewriter: str, policy: str, threshold: float
    ) -> AsyncGenerator[list[Any], None]:
        ask = Ask(
            prompt=text or "",
            picture=Path(shown) if shown else None,
            target=(target or "").strip(),
            rewriter=(rewriter or "").strip(),
            policy=load_policy(policy),
        )
        async with aclosing(_shown(models, Visit(ask=ask.at(threshold)), again=False)) as updates:
            async for update in updates:
                yield update

    async def decide_again(last: Visit | None, threshold: float) -> AsyncGenerator[list[Any], None]:
        if last is None:
            yield [gr.skip()] * (1 + len(views.all()))
            return
        moved = Visit(ask=last.ask.at(threshold), memory=last.memory, id=last.id)
        async with aclosing(_shown(models, moved, again=True)) as updates:
            async for update in updates:
                yield update

    outputs = [visit, *views.all()]
    asked = gr.on(
        [run.click, prompt.submit],
        think,
        [picture, prompt, choices.target, choices.rewriter, choices.policy, choices.threshold],
        outputs,
        **_SHARED,
    )
    again = choices.threshold.input(
        decide_again,
        [visit, choices.threshold],
        outputs,
        trigger_mode="always_last",
        cancels=[asked],
        **_SHARED,
    )
    stop.click(
        lambda: '<p class="vg-status" role="status">Stopped.</p>',
        None,
        views.status,
        cancels=[asked, again],
        show_progress="hidden",
        api_visibility="private",
    )


def _choices(models: Models, settings: UiSettings) -> Choices:
    free = models.any_model
    told = "A spec such as openai:MODEL@URL may be typed." if free else None
    with gr.Accordion("Models and policy", open=True):
        with gr.Row():
            target = model_choice("Target (answers)", models.targets, free=free)
            rewriter = model_choice("Rewriter (guards)", models.rewriters, free=free)
        if told:
            gr.HTML(f'<p class="vg-quiet">{told}</p>')
        policy = gr.Dropdown(
            list(settings.policies), value=settings.policies[0], label="Policy", filterable=False
        )
    threshold = gr.Slider(
        0.001,
        1,
        value=_threshold(models, settings.policies[0], models.rewriters[0], models.targets[0]),
        step=0.001,
        label="Threshold: the least risk that counts as risky",
        elem_id="vg-threshold",
        buttons=[],
        render=False,
    )

    def preset(policy_name: str, rewriter_spec: str, target_spec: str) -> float:
        try:
            return _threshold(models, policy_name, rewriter_spec, target_spec)
        except VLMGuardError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from None

    gr.on(
        [policy.change, rewriter.change],
        preset,
        [policy, rewriter, target],
        threshold,
        show_progress="hidden",
        api_visibility="private",
    )
    return Choices(target=target, rewriter=rewriter, policy=policy, threshold=threshold)


def model_choice(label: str, offered: Sequence[str], *, free: bool) -> gr.Dropdown:
    """A choice of models by their specs; with ``free`` others may be typed."""
    return gr.Dropdown(
        list(offered),
        value=offered[0],
        label=label,
        allow_custom_value=free,
        filterable=free,
        min_width=150,
    )


def _threshold(models: Models, policy: str, rewriter: str, target: str) -> float:
    """The threshold that a policy has with that rewriter, as exactly as the slider shows it."""
    calibrated = models.rewriter((rewriter or "").strip(), target=target).thresholds
    exact = load_policy(policy).threshold_for(dict(calibrated) if calibrated else None)
    return round(exact, 3)


def _views(beside: gr.Column, threshold: gr.Slider) -> Views:
    """All views: those of the guard in a column beside the question, the answers below both."""
    nothing = Snapshot(prompt="", picture=None, threshold=0.5)
    with beside:
        status = gr.HTML(render.status(nothing, again=False), elem_id="vg-status")
        gauge = gr.HTML(render.gauge(nothing), elem_id="vg-gauge")
        threshold.render()  # type: ignore[no-untyped-call]
        with gr.Row(elem_classes="vg-pictures"):
            picture = gr.AnnotatedImage(
                label="What was read in the picture", visible=False, height=260, buttons=[]
            )
            objects = gr.Label(
                label="What it perhaps shows", visible=False, num_top_classes=4, show_heading=False
            )
        evidence = gr.HTML("", elem_id="vg-evidence")
        reasons = gr.HTML(render.reasons(nothing), elem_id="vg-reasons")
        rewritten = gr.HighlightedText(
            label="Prompt that the target receives",
            value=[],
            color_map=render.DIFF_COLOURS,
            show_legend=True,
            show_inline_category=False,
            combine_adjacent=True,
            elem_id="vg-rewritten",
            buttons=[],
        )
    with gr.Row():
        unguarded = _answer_view("Without the guard", "vg-unguarded", nothing)
        guarded = _answer_view("With the guard", "vg-guarded", nothing)
    return Views(
        status=status,
        gauge=gauge,
        reasons=reasons,
        rewritten=rewritten,
        picture=picture,
        objects=objects,
        evidence=evidence,
        unguarded=unguarded,
        guarded=guarded,
    )


def _answer_view(title: str, name: str, nothing: Snapshot) -> gr.HTML:
    with gr.Column(min_width=280):
        return gr.HTML(
            render.answer(title, nothing.guarded, veiled=False, run="", empty="not asked yet"),
            js_on_load=veil_script(),
            elem_id=name,
        )


def _examples(picture: gr.Image, prompt: gr.Textbox) -> None:
    gr.Examples(
        [[example.path, example.prompt] for example in EXAMPLES],
        [picture, prompt],
        label="Examples",
        example_labels=[example.title for example in EXAMPLES],
        api_visibility="private",
    )


async def _shown(models: Models, visit: Visit, *, again: bool) -> AsyncGenerator[list[Any], None]:
    """The updates of a run: the visit, and the views that changed."""
    before: Snapshot | None = None
    run = Run(models, visit.ask, visit.memory)
    async with aclosing(run.snapshots()) as snapshots:
        async for now in snapshots:
            yield [visit, *_updates(now, before, visit.id, again=again)]
            before = now


def _updates(now: Snapshot, before: Snapshot | None, run: str, *, again: bool) -> list[Any]:
    """Values for `Views.all`; what has not changed is not sent again."""
    waiting = "…" if now.step else ""
    made: dict[str, Callable[[Snapshot], Any]] = {
        "status": lambda shown: render.status(shown, again=again),
        "gauge": render.gauge,
        "reasons": render.reasons,
        "rewritten": render.diff,
        "evidence": render.evidence_note,
        "unguarded": lambda shown: render.answer(
            "Without the guard", shown.unguarded, veiled=shown.veiled, run=run, empty=waiting
        ),
        "guarded": lambda shown: render.answer(
            "With the guard", shown.guarded, veiled=shown.passed_risky, run=run, empty=waiting
        ),
    }
    values = {}
    for name, make in made.items():
        value = make(now)
        same = before is not None and make(before) == value
        values[name] = gr.skip() if same else value
    if before is None or before.evidence != now.evidence:
        values["picture"], values["objects"] = _picture_updates(now)
    else:
        values["picture"] = values["objects"] = gr.skip()
    return [values[name] for name in Views.__slots__]


def _picture_updates(now: Snapshot) -> tuple[Any, Any]:
    if now.evidence is None or now.picture is None:
        return gr.update(value=None, visible=False), gr.update(value=None, visible=False)
    found = render.labels(now.evidence)
    return (
        gr.update(value=render.annotated(now.picture, now.evidence), visible=True),
        gr.update(value=found or None, visible=bool(found)),
    )
