"""Modes, failures, keys and the audit log: what the operator chose is what happens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.gateway.common import (
    COMPLETION,
    Rules,
    chunks,
    data_url,
    error_of,
    image_part,
    png,
    running,
    stream,
    text_part,
)
from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineUnavailable,
    PerceptionError,
    RewriteParseError,
)
from vlmguard.gateway.keys import add_key


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def policy_file(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


FAILURES = [
    EngineUnavailable("http://10.1.2.3 is down"),
    EngineRejected("no"),
    RewriteParseError("garbage", raw="x"),
    PerceptionError("ocr broke"),
    RuntimeError("a bug"),
]


def failing(error: Exception) -> Rules:
    rules = Rules()

    async def fail() -> None:
        raise error

    rules.before = fail
    return rules


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_closed_is_closed(error: Exception, tmp_path: Path) -> None:
    """When the guard fails, nothing reaches the target; the audit log says why."""
    audit = tmp_path / "a.jsonl"
    async with running(failing(error), audit=str(audit)) as gate:
        response = await gate.chat("hi")
        told = error_of(response)
        assert (response.status_code, told["code"]) == (503, "guard_failed")
        assert "10.1.2.3" not in told["message"]
        assert not gate.upstream.received
    assert [(r["status"], r["failure"], r["verdict"]) for r in records(audit)] == [
        (503, "guard_failed", None)
    ]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_open_passes_and_says_so(error: Exception, tmp_path: Path) -> None:
    """In the headers and in the audit log; a bug of the rewriter's is a failure like others."""
    policy = policy_file(tmp_path / "p.yaml", "name: trial\non_failure: open\n")
    told = "EngineUnavailable" if isinstance(error, RuntimeError) else type(error).__name__
    audit = tmp_path / "a.jsonl"
    async with running(failing(error), policy=policy, audit=str(audit)) as gate:
        response = await gate.chat("bad")
        assert response.headers["x-vlmguard-action"] == "monitor"
        assert response.headers["x-vlmguard-failure"] == told
        assert gate.upstream.messages[0]["content"] == "bad"
    [record] = records(audit)
    assert record["failure"].startswith(told)
    assert record["status"] == 200


async def test_a_rewriter_that_hangs_is_given_up(tmp_path: Path) -> None:
    """After the policy's timeout; after several, at once."""
    policy = policy_file(tmp_path / "p.yaml", "name: quick\ntimeout_s: 0.02\n")
    rules = Rules()
    rules.before = lambda: asyncio.sleep(60)
    async with running(rules, policy=policy) as gate:
        assert error_of(await gate.chat("one"))["code"] == "guard_failed"


async def test_shadow_only_notes(tmp_path: Path) -> None:
    """The target gets the original at once, and the decision goes into the audit log."""
    audit = tmp_path / "a.jsonl"
    rules = Rules()
    decided = asyncio.Event()
    rules.before = decided.wait  # type: ignore[assignment]  # a wait is a wait
    async with running(rules, mode="shadow", audit=str(audit)) as gate:
        response = await gate.chat("bad")
        assert gate.upstream.messages[0]["content"] == "bad"
        assert response.headers["x-vlmguard-mode"] == "shadow"
        assert "x-vlmguard-verdict" not in response.headers
        assert (await gate.chat([{"type": "input_audio"}])).status_code == 200
        decided.set()
    second, first = sorted(records(audit), key=lambda record: str(record["failure"]))
    assert (second["mode"], second["verdict"], second["status"]) == ("shadow", "risky", 200)
    assert first["failure"].startswith("uninspected_content")


async def test_off_is_off(tmp_path: Path) -> None:
    """Nothing is judged, the bytes pass as they are, and the audit log says so."""
    audit = tmp_path / "a.jsonl"
    async with running(mode="off", audit=str(audit)) as gate:
        raw = b'{ "model":"m",  "messages":[{"role":"user","content":"bad"}]}'
        await gate.http.post("/v1/chat/completions", content=raw)
        assert gate.upstream.last.body == raw
        assert not gate.rules.seen
    assert [record["mode"] for record in records(audit)] == ["off"]


async def test_a_shadow_policy_beside_the_enforced_one(tmp_path: Path) -> None:
    """Both decisions stand in one record; the request follows the first."""
    hard = policy_file(tmp_path / "p.yaml", "name: hard\ndefault_action: refuse\n")
    audit = tmp_path / "a.jsonl"
    async with running(shadow_policy=hard, audit=str(audit)) as gate:
        response = await gate.chat([text_part("bad"), image_part(data_url(png()))])
        assert response.headers["x-vlmguard-action"] == "rewrite"
    [record] = records(audit)
    assert (record["action"], record["shadow_action"], record["shadow_policy"]) == (
        "rewrite",
        "refuse",
        "hard",
    )


async def test_the_audit_log_holds_hashes(tmp_path: Path) -> None:
    """One record a request, without content unless the operator keeps it."""
    audit = tmp_path / "a.jsonl"
    async with running(audit=str(audit)) as gate:
        await gate.chat("very bad words")
        await gate.chat("hi", stream=True)
        await gate.chat([])
    text = audit.read_text()
    assert "bad words" not in text
    risky, streamed, wrong = records(audit)
    assert risky["usage"]["completion_tokens"] == 2
    assert risky["rewrite_sha256"]
    assert streamed["streamed"]
    assert (wrong["status"], wrong["failure"]) == (400, "invalid_value (messages[0].content)")
    kept = tmp_path / "kept.jsonl"
    async with running(audit=str(kept), audit_content=True) as gate:
        await gate.chat("bad words")
    assert records(kept)[0]["rewrite"] == "safe good words"


async def test_keys(tmp_path: Path) -> None:
    """Only known keys pass; each has its own policy, mode and limits."""
    path = tmp_path / "keys.yaml"
    hard = policy_file(tmp_path / "p.yaml", "name: hard\ndefault_action: refuse\n")
    plain, _ = add_key(path, "plain")
    strict, _ = add_key(path, "strict", policy=hard)
    off, _ = add_key(path, "off", mode="off", max_body_bytes=500)
    slow, _ = add_key(path, "slow", requests_per_minute=1)
    lost, _ = add_key(path, "lost", policy="no-such-policy")

    def bearer(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    async with running(keys=path) as gate:
        for headers in ({}, bearer("wrong"), {"authorization": "Basic x"}):
            response = await gate.chat("hi", headers=headers)
            assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert (await gate.http.get("/v1/models")).status_code == 401
        assert (await gate.chat("bad", headers=bearer(plain))).headers[
            "x-vlmguard-action"
        ] == "rewrite"
        assert "authorization" not in gate.upstream.last.headers
        refused = await gate.chat("bad", headers={"x-api-key": strict})
        assert refused.headers["x-vlmguard-action"] == "refuse"
        await gate.chat("bad", headers=bearer(off))
        assert gate.upstream.messages[0]["content"] == "bad"
        assert (await gate.chat("x" * 600, headers=bearer(off))).status_code == 413
        assert (await gate.chat("hi", headers=bearer(slow))).status_code == 200
        limited = await gate.chat("hi", headers=bearer(slow))
        assert (limited.status_code, int(limited.headers["retry-after"]) > 0) == (429, True)
        closed = await gate.chat("hi", headers=bearer(lost))
        assert error_of(closed)["code"] == "guard_failed"


async def test_a_policy_changes_while_serving(tmp_path: Path) -> None:
    """New requests follow the new file; a broken file changes nothing."""
    path = tmp_path / "p.yaml"
    policy_file(path, "name: first\n")
    async with running(policy=str(path)) as gate:
        assert (await gate.chat("bad")).headers["x-vlmguard-policy"] == "first"
        policy_file(path, "name: second\ndefault_action: refuse\n")
        assert gate.gateway.policies.reload() == 1
        response = await gate.chat("bad")
        assert response.headers["x-vlmguard-policy"] == "second"
        assert response.headers["x-vlmguard-action"] == "refuse"
        policy_file(path, "name: [\n")
        assert gate.gateway.policies.reload() == 0
        assert (await gate.chat("bad")).headers["x-vlmguard-policy"] == "second"


async def test_a_changed_policy_drops_no_stream(tmp_path: Path) -> None:
    """One that runs comes to its end by the rules that it began with."""
    path = tmp_path / "p.yaml"
    policy_file(path, "name: first\n")
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, chunks("a")[:1])
        begun.set()
        await go.wait()
        await response.write(chunks("b")[0])
        return response

    async with running(policy=str(path)) as gate:
        gate.upstream.answer = slow
        running_stream = asyncio.create_task(gate.chat("bad", stream=True))
        await begun.wait()
        policy_file(path, "name: second\ndefault_action: refuse\n")
        assert gate.gateway.policies.reload() == 1
        assert (await gate.chat("bad")).headers["x-vlmguard-action"] == "refuse"
        go.set()
        response = await running_stream
        assert response.content == chunks("a")[0] + chunks("b")[0]
        assert response.headers["x-vlmguard-policy"] == "first"


async def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """Without a signal."""
    path = tmp_path / "p.yaml"
    policy_file(path, "name: first\n")
    async with running(policy=str(path)) as gate:
        watching = asyncio.create_task(gate.gateway.policies.watch(every_s=0.01))
        policy_file(path, "name: second-one\n")
        async with asyncio.timeout(5):
            while (await gate.chat("hi")).headers["x-vlmguard-policy"] != "second-one":
                pass  # each request gives the watcher its turn
        watching.cancel()


async def test_an_audit_log_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request goes unrecorded, unless the operator chose that."""
    from vlmguard.errors import AuditError
    from vlmguard.gateway.audit_jsonl import JsonlSink

    def full(_self: object, _records: object) -> None:
        raise AuditError("no space left on device")

    async with running(audit=str(tmp_path / "a.jsonl")) as gate:
        monkeypatch.setattr(JsonlSink, "write", full)
        response = await gate.chat("hi")
        assert (response.status_code, error_of(response)["code"]) == (503, "audit_failed")
    monkeypatch.undo()
    async with running(audit=str(tmp_path / "b.jsonl"), audit_full="continue") as gate:
        monkeypatch.setattr(JsonlSink, "write", full)
        assert (await gate.chat("hi")).status_code == 200


async def test_requests_at_once_share_a_decision() -> None:
    """Twenty equal requests cost one decision."""
    rules = Rules()
    rules.before = lambda: asyncio.sleep(0.02)
    async with running(rules) as gate:
        await asyncio.gather(*(gate.chat("the same") for _ in range(20)))
        assert len(rules.seen) == 1
        assert len(gate.upstream.received) == 20


def test_wrong_settings_are_told(tmp_path: Path) -> None:
    """Every wrong field of a file is listed, with what is known."""
    from vlmguard.gateway.settings import load_settings

    path = tmp_path / "s.yaml"
    path.write_text("mode: maybe\nporrt: 1\nallow-routes: [x]\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {"port": None})
    told = str(caught.value)
    assert all(
        word in told
        for word in ("mode", "porrt", "not 'maybe'", "no such field", "'x' is no route")
    )
    path.write_text("mode: shadow\n")
    assert load_settings(path, {"mode": "off", "port": None}).mode == "off"
    path.write_text("mode: off\n")  # false, to YAML
    assert load_settings(path, {}).mode == "off"


async def test_running_gateways_need_a_servable_defence() -> None:
    """ECSO works on the answer, which is streamed here."""
    with pytest.raises(ConfigError, match="target's answer"):
        async with running(defence="ecso"):
            pass


async def test_requests_answers_and_records_agree(tmp_path: Path) -> None:
    """Whatever happens to a request, it has one answer and one record with the same status."""
    audit = tmp_path / "a.jsonl"
    rules = Rules()
    turn = 0

    async def now_and_then() -> None:
        if turn % 3 == 0:
            raise EngineUnavailable("down")

    rules.before = now_and_then
    answered: list[tuple[str, int]] = []
    async with running(rules, audit=str(audit)) as gate:

        async def sometimes(_request: web.Request, body: Any) -> web.StreamResponse:
            if turn % 4 == 0:
                return web.json_response({"error": {"message": "busy"}}, status=500)
            if body.get("stream"):
                return await stream(_request, chunks("a"))
            return web.json_response(COMPLETION)

        gate.upstream.answer = sometimes
        for turn in range(24):
            content: Any = f"bad {turn}" if turn % 2 else f"hi {turn}"
            response = await gate.chat([] if turn % 5 == 0 else content, stream=turn % 7 == 0)
            answered.append((response.headers["x-vlmguard-request-id"], response.status_code))
    assert [(r["request_id"], r["status"]) for r in records(audit)] == answered
    assert {status for _, status in answered} == {200, 400, 500, 503}
