"""What the page shows of a run, as HTML and as values of Gradio's components.

Everything that a person or a model wrote is escaped; `gr.HTML` shows its value as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from vlmguard.data.worddiff import word_diff
from vlmguard.types import ImageEvidence, TextBox
from vlmguard.ui.runs import Answer, Snapshot

_MOST_PIXELS = 900
"""Longer side of the picture with its boxes; the boxes are sent as pictures of that size."""
_MOST_BOXES = 20
_LABEL_CHARS = 60

DIFF_COLOURS = {"removed": "#f87171", "added": "#4ade80"}
_ACTIONS = {
    "allow": "the prompt passes unchanged",
    "monitor": "the prompt passes unchanged, and is marked",
    "rewrite": "the prompt is rewritten",
    "refuse": "the request is refused",
}

Boxes = tuple[Image.Image, list[tuple[tuple[int, int, int, int], str]]]


def annotated(picture: Path, evidence: ImageEvidence) -> Boxes:
    """The picture with its text boxes, for `gr.AnnotatedImage`."""
    with Image.open(picture) as opened:
        opened.seek(0)
        shown = ImageOps.exif_transpose(opened).convert("RGB")
    scale = min(1.0, _MOST_PIXELS / max(shown.size))
    size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
    shown = shown.resize(size)
    boxes = []
    for box in evidence.text[:_MOST_BOXES]:
        left, top, right, bottom = (round(side * scale) for side in box.box)
        area = (max(0, left), max(0, top), min(size[0], right), min(size[1], bottom))
        if area[0] < area[2] and area[1] < area[3]:
            boxes.append((area, _box_label(box)))
    return shown, boxes


def _box_label(box: TextBox) -> str:
    text = box.text if len(box.text) <= _LABEL_CHARS else f"{box.text[: _LABEL_CHARS - 1]}…"
    return f"{'hidden: ' if box.hidden else ''}{text}"


def labels(evidence: ImageEvidence) -> dict[str, float]:
    """What the picture perhaps shows, for `gr.Label`."""
    return {seen.label: seen.probability for seen in evidence.objects}


def evidence_note(snapshot: Snapshot) -> str:
    """What stands below the picture: what was read, and what was not inspected."""
    seen = snapshot.evidence
    if seen is None:
        if snapshot.picture is not None and snapshot.rewrite is not None:
            return _quiet("The models see this picture themselves; no detector read it.")
        return ""
    parts = []
    if seen.text:
        parts.append(f"Text: “{escape(' / '.join(box.text for box in seen.text))}”")
        hidden = sum(box.hidden for box in seen.text)
        if hidden:
            parts.append(f"<strong>{hidden} of its lines are hidden from the eye.</strong>")
        if len(seen.text) > _MOST_BOXES:
            parts.append(f"The first {_MOST_BOXES} lines are drawn.")
    else:
        parts.append("No text found.")
    if seen.nudity is not None:
        parts.append(f"Nudity score {seen.nudity:.2f} (0 none, 1 certain).")
    if seen.frames > 1 or seen.frames_skipped:
        parts.append(f"{seen.frames} views inspected, {seen.frames_skipped} left out.")
    parts += [f"{escape(name)} failed: {escape(why)}" for name, why in seen.failed.items()]
    return _quiet(" ".join(parts))


def gauge(snapshot: Snapshot) -> str:
    """The risk as a meter, with the policy's threshold marked on it."""
    risk, threshold = snapshot.risk, snapshot.threshold
    mark = f"{100 * threshold:.1f}%"
    if risk is None:
        meter = '<div class="vg-meter" aria-hidden="true"></div>'
        verdict = '<strong class="vg-verdict">Risk</strong> <span>not known yet</span>'
    else:
        side = "risky" if risk >= threshold else "safe"
        # Not the element <meter>: each browser draws its own, and lets little of it be styled.
        meter = (
            f'<div class="vg-meter {side}" role="meter" aria-label="Risk" aria-valuemin="0" '
            f'aria-valuemax="1" aria-valuenow="{risk:.4f}"><span style="width:{risk:.2%}"></span>'
            "</div>"
        )
        verdict = (
            f'<strong class="vg-verdict {side}">{side.capitalize()}</strong> '
            f"<span>risk {risk:.3f}, {'at least' if side == 'risky' else 'below'} the threshold "
            f"of {threshold:.3f}</span>"
        )
    return (
        f'<div class="vg-card vg-gauge"><p>{verdict}</p>{_consequence(snapshot)}'
        f'<div class="vg-scale">{meter}<span class="vg-mark" style="left:{mark}" '
        'aria-hidden="true"></span></div><div class="vg-ends" aria-hidden="true"><span>0</span>'
        f'<span class="vg-mark-text" style="left:{mark}">threshold</span><span>1</span></div></div>'
    )


def _consequence(snapshot: Snapshot) -> str:
    rewrite = snapshot.rewrite
    if rewrite is None:
        return ""
    told = _ACTIONS[rewrite.action]
    if rewrite.category:
        told = f"{escape(rewrite.category.replace('_', ' '))}: {told}"
    return f'<p class="vg-consequence">{told[0].upper()}{told[1:]}.</p>'


def reasons(snapshot: Snapshot) -> str:
    """The three lines of reasoning, as far as they are written."""
    report = snapshot.rewrite.report if snapshot.rewrite is not None else None
    source = report or snapshot.partial
    rows = (("Text", source.textual), ("Picture", source.visual), ("Together", source.multimodal))
    if snapshot.rewrite is not None and report is None:
        body = _quiet("None: a request below the threshold passes without them.")
    elif not any(text for _, text in rows):
        body = _quiet("…" if snapshot.step else "Written for risky requests only.")
    else:
        lines = "".join(f"<dt>{name}</dt><dd>{escape(text) or '…'}</dd>" for name, text in rows)
        body = f'<dl class="vg-reasons">{lines}</dl>'
    return f'<section class="vg-card"><h2>Reasons</h2>{body}</section>'


def diff(snapshot: Snapshot) -> list[tuple[str, str | None]]:
    """The rewritten prompt against the user's, for `gr.HighlightedText`."""
    rewrite = snapshot.rewrite
    if rewrite is None:
        written = snapshot.partial.prompt
        return [(written, "added")] if written else []
    if not rewrite.changed:
        return [(rewrite.prompt or "(no prompt)", None)]
    return [
        (piece.text, None if piece.kind == "same" else piece.kind)
        for piece in word_diff(snapshot.prompt, rewrite.prompt)
    ]


def answer(title: str, shown: Answer, *, veiled: bool, run: str, empty: str = "") -> str:
    """An answer; under a veil that the visitor lifts by a click or a key.

    Args:
        title: of the answer.
        shown: the answer.
        veiled: whether it is covered at first.
        run: tells the page that a lifted veil is still the same one.
        empty: what stands there before the answer.
    """
    text = escape(shown.text) or ("" if shown.problem else f"<em>{escape(empty)}</em>")
    problem = f'<p class="vg-problem" role="alert">{escape(shown.problem)}</p>'
    problem = problem if shown.problem else ""
    busy = "true" if shown.text and not shown.done else "false"
    content = f'<div class="content"{" inert" if veiled else ""}>{text}</div>'
    if not shown.text or not veiled:
        content = f'<div class="content" tabindex="0">{text}</div>'
        return _section(title, f"{content}{problem}", busy)
    lift = (
        '<button type="button" class="lift" aria-expanded="false">'
        "<span>Possibly harmful. Show it</span></button>"
    )
    body = f'<div class="vg-veil" data-run="{escape(run)}">{content}{lift}</div>{problem}'
    return _section(title, body, busy)


def _section(title: str, body: str, busy: str) -> str:
    heading = f"<h2>{escape(title)}</h2>"
    return f'<section class="vg-card vg-answer" aria-busy="{busy}">{heading}{body}</section>'


def status(snapshot: Snapshot, *, again: bool) -> str:
    """What is going on, read out by screen readers; and problems."""
    if snapshot.problem:
        return problem(snapshot.problem)
    failure = snapshot.rewrite.failure if snapshot.rewrite is not None else None
    warning = ""
    if failure:
        warning = problem(
            "The guard failed and the policy is open, so the original prompt was sent: " + failure
        )
    if not snapshot.step:
        return _quiet("Drop a picture, type a prompt, press Run; or take one of the examples.")
    if snapshot.step != "done":
        return f'{warning}<p class="vg-status" role="status">{escape(snapshot.step)} …</p>'
    notes = "".join(f"<p>{escape(note)}</p>" for note in snapshot.notes)
    told = f"{_told_calls(snapshot, again=again)} {_told_times(snapshot)}"
    return f'{warning}<div class="vg-status" role="status"><p>{escape(told)}</p>{notes}</div>'


def _told_calls(snapshot: Snapshot, *, again: bool) -> str:
    calls = f"{snapshot.asked} model call{'' if snapshot.asked == 1 else 's'}"
    if not again:
        return f"Done in {snapshot.elapsed_ms / 1000:.1f} s with {calls}."
    at = f"Decided again at {snapshot.threshold:.3f}"
    if snapshot.asked == 0:
        return f"{at} without asking a model again: everything was remembered."
    return (
        f"{at} with {calls}: what this side of the threshold needs was written once, and is "
        "remembered now. The risk was known."
    )


def _told_times(snapshot: Snapshot) -> str:
    rewrite = snapshot.rewrite
    if rewrite is None or not rewrite.timings_ms:
        return ""
    steps = ", ".join(f"{step} {ms:.0f} ms" for step, ms in rewrite.timings_ms.items())
    return f"Guard: {steps}."


def problem(message: str) -> str:
    """A problem, announced at once."""
    return f'<p class="vg-problem" role="alert">{escape(message)}</p>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="vg-facts">{lines}</dl>'


def _quiet(text: str) -> str:
    return f'<p class="vg-quiet">{text}</p>' if text else ""
