"""Records as one self-contained page: pictures, F, A, and how the prompt changed.

Risky texts and pictures are blurred until somebody asks for them, by mouse or keyboard, and are
hidden from screen readers until then. Everything from the records is escaped, the one script is
allowed by its hash, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from vlmguard.data.coverage import FACETS
from vlmguard.data.found import Found
from vlmguard.data.pictures import load_picture
from vlmguard.data.records import Evidence, ImageRef, TrainingRecord
from vlmguard.data.webpage import asset, content_policy, script, style
from vlmguard.data.worddiff import word_diff
from vlmguard.errors import DataError

_FOOT = "</main><footer>{count} records</footer><script>{script}</script></body></html>\n"


def write_page(records: Iterable[Found], path: Path, *, title: str) -> int:
    """Write the page; one record is in memory at a time.

    Args:
        records: from `vlmguard.data.scan`.
        path: replaced when it is there.
        title: for the reader.

    Returns:
        How many records it shows; with none, nothing is written.

    Raises:
        DataError: a wrong record, or the page cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as page:
            page.write(_head(title))
            for found in records:
                if isinstance(found.outcome, DataError):
                    raise found.outcome
                page.writelines(_card(found, found.outcome))
                count += 1
            page.write(_FOOT.format(count=count, script=_script()))
        if count:
            part.replace(path)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _script() -> str:
    return script(asset("page.js"))


def _head(title: str) -> str:
    policy = content_policy(_script())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{style(asset('page.css'))}</style>"
        "<noscript><style>.content{filter:none!important}.lift{display:none!important}"
        "</style></noscript></head><body>"
        f'<div class="bar"><h1>{escape(title)}</h1>'
        '<label>Records <select id="verdict"><option value="all">all</option>'
        '<option value="risky">risky</option><option value="safe">safe</option></select></label>'
        '<button type="button" id="all" aria-pressed="false">Show risky text</button></div><main>'
    )


def _card(found: Found, record: TrainingRecord) -> Iterator[str]:
    risky = record.verdict == "risky"
    yield f'<article class="record" data-verdict="{record.verdict}"><header>'
    yield f"<h2>{escape(record.id)}</h2>"
    yield f'<span class="tag {record.verdict}">{record.verdict}</span>'
    facts = [record.category, record.split, record.source]
    facts += [str(record.meta[facet]) for facet in FACETS if facet in record.meta]
    facts += [f"severity {record.severity}"] if record.severity else []
    yield from (f'<span class="tag">{escape(fact)}</span>' for fact in facts if fact)
    yield "</header>"
    if record.images or record.evidence:
        yield "<h3>Pictures</h3>" + _veil(
            "".join(_pictures(found, record)), "pictures", veiled=risky
        )
    if record.earlier:
        turns = (
            f'<div class="turn"><b>{turn.role}</b>{_text(turn.text)}</div>'
            for turn in record.earlier
        )
        yield "<h3>Earlier</h3>" + _veil("".join(turns), "messages", veiled=risky)
    yield from _prompts(record, risky=risky)
    if risky:
        yield from _reasons(record)
    yield from _answers(record)
    yield "</article>\n"


def _pictures(found: Found, record: TrainingRecord) -> Iterator[str]:
    yield '<div class="pictures">'
    for number in range(max(len(record.images), len(record.evidence))):
        yield "<figure>"
        if number < len(record.images):
            yield _picture(found, record.images[number], number + 1)
        if number < len(record.evidence):
            yield _evidence(record.evidence[number])
        yield "</figure>"
    yield "</div>"


def _picture(found: Found, ref: ImageRef, number: int) -> str:
    try:
        image = load_picture(found.root, ref)
    except DataError as error:
        return f'<p class="missing">{escape(str(error))}</p>'
    return f'<img src="{escape(image.data_url())}" alt="Picture {number}">'


def _evidence(seen: Evidence) -> str:
    guesses = [f"{label} {probability:.2f}" for label, probability in seen.objects]
    if seen.nudity is not None:
        guesses.append(f"nudity {seen.nudity:.2f}")
    words = seen.words()
    text = _text(words) if words else ""
    told = ", ".join(guesses) or ("no objects found" if words else "nothing found")
    return f'<div class="seen">{text}<div class="guess">{escape(told)}</div></div>'


def _prompts(record: TrainingRecord, *, risky: bool) -> Iterator[str]:
    """The prompt; beside it the rewrite, with what changed marked in both."""
    yield '<div class="prompts"><div><h3>Prompt</h3>'
    if record.rewrite is None:
        yield _veil(_text(record.prompt or "(none)"), "prompt", veiled=risky) + "</div></div>"
        return
    before: list[str] = []
    after: list[str] = []
    for piece in word_diff(record.prompt, record.rewrite):
        text = escape(piece.text)
        if piece.kind != "added":
            before.append(text if piece.kind == "same" else f"<del>{text}</del>")
        if piece.kind != "removed":
            after.append(text if piece.kind == "same" else f"<ins>{text}</ins>")
    yield _veil(f'<p dir="auto">{"".join(before) or "(none)"}</p>', "prompt", veiled=risky)
    yield f'</div><div><h3>Rewrite</h3><p dir="auto">{"".join(after)}</p></div></div>'


def _reasons(record: TrainingRecord) -> Iterator[str]:
    causes = (
        ("Text", record.textual),
        ("Picture", record.visual),
        ("Together", record.multimodal),
        ("Triggers", ", ".join(record.triggers)),
    )
    rows = (f"<dt>{name}</dt><dd>{escape(cause)}</dd>" for name, cause in causes if cause)
    yield f"<h3>Risk report</h3><dl>{''.join(rows)}</dl>"
    if record.features:
        items = (
            f"<li>{escape(found.feature)} → {escape(found.harm)} <q>{escape(found.span)}</q></li>"
            for found in record.features
        )
        yield "<h3>Risk features of the unsafe answer</h3>"
        yield _veil(f"<ul>{''.join(items)}</ul>", "features", veiled=True)


def _answers(record: TrainingRecord) -> Iterator[str]:
    if record.safe_response is None and record.unsafe_response is None:
        return
    yield "<details><summary>Answers to the original prompt</summary>"
    if record.safe_response is not None:
        yield f"<h3>Safe</h3>{_text(record.safe_response)}"
    if record.unsafe_response is not None:
        yield "<h3>Unsafe</h3>" + _veil(_text(record.unsafe_response), "answer", veiled=True)
    if scores := record.verification:
        yield (
            f"<h3>Judged</h3><p>safety {scores.safety_before:g} → {scores.safety_after:g}, "
            f"helpfulness {scores.helpfulness_before:g} → {scores.helpfulness_after:g}, "
            f"attempts {scores.attempts}</p>"
        )
    yield "</details>"


def _text(text: str) -> str:
    return f'<p dir="auto">{escape(text)}</p>'


def _veil(content: str, what: str, *, veiled: bool) -> str:
    """The content, blurred where asked; ``what`` names it to those who cannot see the blur."""
    if not veiled:
        return content
    return (
        f'<div class="veiled"><div class="content">{content}</div>'
        f'<button type="button" class="lift" aria-label="Show risky {what}">'
        "<span>risky: show</span></button></div>"
    )
