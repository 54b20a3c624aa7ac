"""The tab that looks at the gateway's audit log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import gradio as gr
import pandas as pd  # type: ignore[import-untyped]

from vlmguard.errors import VLMGuardError
from vlmguard.gateway.audit import AuditQuery, AuditRecord
from vlmguard.gateway.audit_export import AuditFormat
from vlmguard.rewriting.policy import CATEGORY_NAMES
from vlmguard.ui import audit_view, render
from vlmguard.ui.audit_view import AuditPage, look
from vlmguard.ui.guard_tab import veil_script

_ANY = "any"
_COLOURS = {"safe": "#16a34a", "risky": "#ea580c", audit_view.UNDECIDED: "#6b7280"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The components that say which decisions are meant."""

    verdict: gr.Dropdown
    category: gr.Dropdown
    key: gr.Textbox
    since: gr.DateTime
    until: gr.DateTime
    failed: gr.Checkbox

    def all(self) -> list[Any]:
        """As inputs of a handler."""
        return [getattr(self, name) for name in self.__slots__]


def query_of(  # noqa: PLR0917  # Gradio gives values by place
    verdict: str,
    category: str,
    key: str,
    since: float | None,
    until: float | None,
    failed: bool,  # noqa: FBT001
) -> AuditQuery:
    """The query that the filters describe; times are seconds since 1970."""
    return AuditQuery(
        verdict=None if verdict == _ANY else verdict,
        category=None if category == _ANY else category,
        key_id=key.strip() or None,
        since=None if since is None else datetime.fromtimestamp(since, UTC),
        until=None if until is None else datetime.fromtimestamp(until, UTC),
        failed=failed,
    )


def audit_tab(log: str, tab: gr.Tab) -> None:
    """Build the tab within the current `gr.Blocks`.

    Args:
        log: as of `vlmguard.gateway.audit.open_reader`.
        tab: is read anew whenever it is opened.
    """
    listed = gr.State(())
    filters = _filters()
    with gr.Row():
        refresh = gr.Button("Look again", elem_id="vg-audit-refresh")
        kind = gr.Dropdown(
            [AuditFormat.JSONL.value, AuditFormat.CSV.value],
            value=AuditFormat.JSONL.value,
            label="Export as",
            filterable=False,
        )
        export = gr.Button("Export")
    file = gr.File(label="Exported decisions", visible=False, interactive=False)
    told = gr.HTML("", elem_id="vg-audit-told")
    chart = gr.BarPlot(
        _frame(None),
        x="time",
        y="decisions",
        color="verdict",
        color_map=_COLOURS,
        y_aggregate="sum",
        title="Decisions over time (UTC)",
        height=220,
        buttons=[],
    )
    table = gr.Dataframe(
        headers=list(audit_view.COLUMNS),
        value=[],
        interactive=False,
        label="Decisions, newest first; choose one to see it in full",
        show_label=True,
        elem_id="vg-audit-table",
        max_height=340,
        buttons=[],
    )
    full = gr.HTML("", js_on_load=veil_script(), elem_id="vg-audit-full")

    def find(*values: Any) -> list[Any]:
        try:
            page = look(log, query_of(*values))
        except VLMGuardError as error:
            return [(), render.problem(str(error)), gr.skip(), [], ""]
        rows = [audit_view.row(record) for record in page.newest]
        return [page.newest, audit_view.told(page), _frame(page), rows, ""]

    def choose(records: tuple[AuditRecord, ...], event: gr.SelectData) -> str:
        at = event.index[0]
        request = event.row_value[-1]  # the visitor may have sorted the table
        found = (record for record in records if record.request_id == request)
        record = next(found, records[at] if at < len(records) else None)
        return "" if record is None else audit_view.in_full(record)

    def write(form: str, *values: Any) -> Any:
        try:
            path = audit_view.exported(log, query_of(*values), AuditFormat(form))
        except VLMGuardError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return gr.update(value=str(path), visible=True)

    outputs = [listed, told, chart, table, full]
    changes: list[Callable[..., Any]] = [refresh.click, tab.select]
    changes += [getattr(each, "change") for each in filters.all()]  # noqa: B009
    gr.on(
        changes,
        find,
        filters.all(),
        outputs,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    table.select(choose, listed, full, show_progress="hidden", api_visibility="private")
    export.click(write, [kind, *filters.all()], file, api_visibility="private")


def _filters() -> Filters:
    with gr.Row():
        return Filters(
            verdict=gr.Dropdown(
                [_ANY, "safe", "risky"],
                value=_ANY,
                label="Verdict",
                filterable=False,
                min_width=120,
                elem_id="vg-audit-verdict",
            ),
            category=gr.Dropdown(
                [_ANY, *CATEGORY_NAMES], value=_ANY, label="Category", min_width=160
            ),
            key=gr.Textbox(label="Key", placeholder="any", min_width=120),
            since=gr.DateTime(label="Since (UTC)", timezone="UTC", min_width=180),
            until=gr.DateTime(label="Before (UTC)", timezone="UTC", min_width=180),
            failed=gr.Checkbox(label="Only failures of the guard", min_width=160),
        )


def _frame(page: AuditPage | None) -> pd.DataFrame:
    bars = page.bars if page is not None else ()
    return pd.DataFrame(
        {
            "time": pd.Series([bar.start for bar in bars], dtype="datetime64[ns, UTC]"),
            "decisions": pd.Series([bar.decisions for bar in bars], dtype="int64"),
            "verdict": pd.Series([bar.verdict for bar in bars], dtype="object"),
        }
    )
