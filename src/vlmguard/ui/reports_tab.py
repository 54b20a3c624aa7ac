"""The tab that opens evaluation reports from one folder."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vlmguard.errors import InputError, VLMGuardError
from vlmguard.ui import render

_MOST_BYTES = 40 * 1024 * 1024


def reports_in(folder: Path) -> list[str]:
    """HTML files in the folder and below it, newest first, by their path from there."""
    root = folder.resolve()
    inside = [
        path
        for path in folder.rglob("*.html")
        if path.is_file() and path.resolve().is_relative_to(root)
    ]
    inside.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.relative_to(folder).as_posix() for path in inside]


def framed(folder: Path, name: str) -> str:
    """A report in a frame that may run the report's own script and reach nothing else.

    Raises:
        InputError: no such report in the folder, or too large to be shown.
    """
    if name not in reports_in(folder):
        raise InputError(f"there is no report {name!r} in {folder}")
    path = folder / name
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise InputError(f"{path} has {size:,} bytes, too many to be shown here; open it directly")
    text = path.read_text("utf-8", errors="replace")
    # Without allow-same-origin the frame has an origin of its own: no cookies, no parent.
    return (
        f'<iframe class="vg-report" sandbox="allow-scripts" title="Report {escape(name)}" '
        f'srcdoc="{escape(text)}"></iframe>'
    )


def reports_tab(folder: Path, tab: gr.Tab) -> None:
    """Build the tab within the current `gr.Blocks`; the folder is read whenever it is opened."""
    found = reports_in(folder)
    with gr.Row():
        name = gr.Dropdown(found, value=found[0] if found else None, label="Report", scale=4)
        show = gr.Button("Open", scale=1, elem_id="vg-open-report")
    told = gr.HTML(_none(folder) if not found else "")
    frame = gr.HTML("", elem_id="vg-report")

    def refresh(chosen: str | None) -> tuple[Any, str]:
        names = reports_in(folder)
        value = chosen if chosen in names else (names[0] if names else None)
        return gr.update(choices=names, value=value), "" if names else _none(folder)

    def open_report(chosen: str | None) -> tuple[str, str]:
        if not chosen:
            return "", _none(folder)
        try:
            return framed(folder, chosen), ""
        except VLMGuardError as error:
            return "", render.problem(str(error))

    tab.select(refresh, name, [name, told], show_progress="hidden", api_visibility="private")
    show.click(open_report, name, [frame, told], api_visibility="private")


def _none(folder: Path) -> str:
    return (
        f'<p class="vg-quiet">There are no reports in {escape(str(folder))}. '
        "<code>vlmguard eval</code> writes one for each run.</p>"
    )
