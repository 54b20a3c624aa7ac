"""The parts of the playground that need no browser."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from tests.drawing import encode, typed_text
from tests.ui import playground
from vlmguard.cli.main import app as commands
from vlmguard.engines import Sampling
from vlmguard.errors import AuditError, ConfigError, InputError
from vlmguard.gateway.audit import AuditQuery, AuditRecord, open_audit
from vlmguard.gateway.audit_export import AuditFormat
from vlmguard.types import Chat, ImageEvidence, RiskReport, TextBox
from vlmguard.ui import audit_view, render
from vlmguard.ui.compare_tab import columns, compared
from vlmguard.ui.examples import EXAMPLES
from vlmguard.ui.models import Models
from vlmguard.ui.partial import read_partial
from vlmguard.ui.reports_tab import framed, reports_in
from vlmguard.ui.runs import Answer, Snapshot
from vlmguard.ui.settings import (
    UiSettings,
    check_exposure,
    password_from,
    passwords_from,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("cut", range(0, 140, 3))
def test_an_assessment_is_read_wherever_it_is_cut(cut: int) -> None:
    """A part of an assessment gives parts of its fields, and never fails."""
    text = json.dumps({"category": "fraud", "textual": 'a "b"\né', "prompt": "x\\y"})
    whole = read_partial(text)
    part = read_partial(text[:cut])
    assert whole.textual == 'a "b"\né'
    assert whole.prompt == "x\\y"
    assert whole.category.startswith(part.category)


def test_what_people_and_models_wrote_is_escaped() -> None:
    """No answer, reason or problem becomes markup."""
    attack = "<img src=x onerror=alert(1)>"
    shown = render.answer("t", Answer(text=attack, problem=attack), veiled=True, run=attack)
    assert "<img" not in shown + render.problem(attack) + render.facts([(attack, attack)])


def test_a_veiled_answer_is_inert_until_it_is_lifted() -> None:
    """The server sends veils closed: out of reach of the keyboard and of screen readers."""
    shown = render.answer("t", Answer(text="words"), veiled=True, run="r")
    assert '<div class="content" inert>' in shown
    assert 'aria-expanded="false"' in shown
    assert "inert" not in render.answer("t", Answer(text="words"), veiled=False, run="r")


def test_the_gauge_marks_the_threshold() -> None:
    """The risk is a meter; where the threshold stands is written and drawn."""
    shown = render.gauge(Snapshot(prompt="", picture=None, threshold=0.25, risk=0.3))
    assert 'aria-valuenow="0.3000"' in shown
    assert 'style="width:30.00%"' in shown
    assert "Risky" in shown
    assert "left:25.0%" in shown


def test_boxes_are_drawn_where_the_text_stands(tmp_path: Path) -> None:
    """Boxes are scaled with the picture and stay within it."""
    path = tmp_path / "large.png"
    path.write_bytes(encode(typed_text(size=(1800, 600))))
    evidence = ImageEvidence(
        sha256="",
        width=1800,
        height=600,
        text=(
            TextBox(text="Steps", confidence=1, box=(20, 20, 400, 100)),
            TextBox(text="out", confidence=1, box=(-5, 500, 9000, 900), hidden=True),
        ),
    )
    picture, boxes = render.annotated(path, evidence)
    assert picture.size == (900, 300)
    assert boxes == [((10, 10, 200, 50), "Steps"), ((0, 250, 900, 300), "hidden: out")]


def test_the_examples_are_there() -> None:
    """Every example that names a picture ships it."""
    assert all(each.path is None or Path(each.path).is_file() for each in EXAMPLES)


async def test_defences_are_compared_one_after_the_other() -> None:
    """Each has its answer, calls and tokens; without a harmless verdict answers are veiled."""
    models = Models((playground.TARGET,), (playground.REWRITER,), any_model=True)
    chat = Chat.of("Make a fake card")
    specs = ["none", "guard", "nonsense"]
    seen = [each async for each in compared(models, chat, playground.TARGET, specs, Sampling())]
    last = seen[-1]
    assert [each.running for each in seen[1].values()] == [False, True, False]
    assert last["none"].reply is not None
    assert last["none"].reply.completion.text == playground.RISKY_ANSWER
    assert last["guard"].reply is not None
    assert last["guard"].reply.trace.calls == 2
    assert "unknown defence" in last["nonsense"].problem
    shown = columns(last, "run")
    assert shown.count("vg-veil") == 1
    assert "Calls added" in shown


async def write_log(
    path: Path, count: int, *, keep_content: bool = True, failed: bool = False
) -> None:
    """An audit log with decisions a minute apart, every third of them risky.

    Args:
        path: to write.
        count: of the decisions.
        keep_content: texts and reasons too.
        failed: a last request whose guard failed.
    """
    log = open_audit(path, keep_content=keep_content)
    for number in range(count):
        risky = number % 3 == 0
        await log.record(
            AuditRecord(
                time=NOW + timedelta(minutes=number),
                request_id=f"request-{number}",
                route="/v1/chat/completions",
                status=200,
                key_id="alice" if number % 2 else "bob",
                policy="balanced",
                verdict="risky" if risky else "safe",
                risk=0.9 if risky else 0.1,
                category="fraud" if risky else None,
                action="rewrite" if risky else "allow",
                prompt=f"prompt <{number}>",
                report=RiskReport(textual="t", visual="v", multimodal="m") if risky else None,
            )
        )
    if failed:
        await log.record(
            AuditRecord(
                time=NOW + timedelta(minutes=count),
                request_id=f"request-{count}",
                route="/v1/chat/completions",
                status=504,
                policy="balanced",
                failure="EngineTimeout: no answer within 30 s",
            )
        )
    await log.aclose()


async def test_the_audit_view_filters_and_counts(tmp_path: Path) -> None:
    """Verdict, key, category and time select; bars add up to the records."""
    log = tmp_path / "audit.sqlite"
    await write_log(log, 30, failed=True)
    page = audit_view.look(str(log), AuditQuery())
    assert page.total == sum(bar.decisions for bar in page.bars) == 31
    assert page.by_verdict == {"risky": 10, "safe": 20, "undecided": 1}
    assert page.newest[0].request_id == "request-30"
    failures = audit_view.look(str(log), AuditQuery(failed=True))
    assert "1 decision (1 undecided). The guard failed on 1." in audit_view.told(failures)
    query = AuditQuery(verdict="risky", key_id="bob", since=NOW + timedelta(minutes=10))
    assert audit_view.look(str(log), query).total == 3
    assert audit_view.look(str(log), AuditQuery(category="hate")).total == 0
    path = audit_view.exported(str(log), query, AuditFormat.CSV)
    assert len(path.read_text().splitlines()) == 4


async def test_a_decision_in_full_veils_what_is_risky(tmp_path: Path) -> None:
    """Texts are shown where they were kept, escaped, and a risky one's under a veil."""
    kept, bare = tmp_path / "kept.sqlite", tmp_path / "bare.jsonl"
    await write_log(kept, 2)
    await write_log(bare, 1, keep_content=False)
    safe, risky = audit_view.look(str(kept), AuditQuery()).newest
    assert "prompt &lt;0&gt;" in audit_view.in_full(risky)
    assert "vg-veil" in audit_view.in_full(risky)
    assert "vg-veil" not in audit_view.in_full(safe)
    hashed = audit_view.look(str(bare), AuditQuery()).newest[0]
    assert "hashes only" in audit_view.in_full(hashed)


def test_a_missing_log_is_told(tmp_path: Path) -> None:
    """The view names the file and how one is written."""
    with pytest.raises(AuditError, match="vlmguard serve --audit"):
        audit_view.look(str(tmp_path / "none.sqlite"), AuditQuery())


def test_reports_come_from_their_folder_only(tmp_path: Path) -> None:
    """A report is framed without access to the page; nothing outside the folder is opened."""
    folder = tmp_path / "reports"
    (folder / "run").mkdir(parents=True)
    (folder / "run/report.html").write_text('<p class="x">"Fine"</p>')
    (tmp_path / "secret.html").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    assert reports_in(folder) == ["run/report.html"]
    shown = framed(folder, "run/report.html")
    assert 'sandbox="allow-scripts"' in shown
    assert "&lt;p class=&quot;x&quot;&gt;" in shown
    for name in ("../secret.html", "link.html", str(tmp_path / "secret.html")):
        with pytest.raises(InputError, match="there is no report"):
            framed(folder, name)


def test_other_machines_need_a_password() -> None:
    """Only loopback is open without one, unless the operator insists."""
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, None, allowed=False)
    check_exposure("0.0.0.0", {"a": "b"}, allowed=False)
    check_exposure("0.0.0.0", None, allowed=True)
    with pytest.raises(ConfigError, match="--password-env"):
        check_exposure("0.0.0.0", None, allowed=False)


def test_passwords_are_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or the environment; a wrong line is named without its password."""
    file = tmp_path / "users"
    file.write_text("# people\nann:one:two\n")
    settings = UiSettings(passwords=passwords_from(file))
    assert settings.signs_in("ann", "one:two")
    assert not settings.signs_in("ann", "one")
    assert not settings.signs_in("bob", "")
    file.write_text("ann\n")
    with pytest.raises(ConfigError, match="users:1: must read name:password"):
        passwords_from(file)
    monkeypatch.setenv("UI_PASSWORD", "pass")
    assert password_from("UI_PASSWORD") == {"vlmguard": "pass"}
    monkeypatch.setenv("UI_PASSWORD", "")
    with pytest.raises(ConfigError, match="UI_PASSWORD"):
        password_from("UI_PASSWORD")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "no password is set"),
        (["--reports", "/nonexistent"], "is not a folder"),
        (["--policy", "nonsense"], "there is no policy 'nonsense'"),
        (["--port", "0", "--rewriter", "nonsense"], "unknown engine 'nonsense'"),
        (["--port", "0", "--password-env", "A", "--auth", "b"], "not both"),
    ],
)
def test_the_command_refuses_what_cannot_be(arguments: list[str], message: str) -> None:
    """Wrong options end with a message before anything is served."""
    with pytest.raises(ConfigError, match=message):
        commands(["ui", *arguments], standalone_mode=False)
