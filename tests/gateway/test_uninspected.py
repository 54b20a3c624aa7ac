"""Content that the operator lets pass unseen: it reaches the target, and the gateway says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.common import data_url, error_of, image_part, png, running, text_part
from tests.gateway.faults import read_audit
from vlmguard.engines.scripted import ScriptedEngine

AUDIO = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
ALLOWED = ("input_audio", "document", "shell_call", "documents")
HEADER = "x-vlmguard-uninspected"


def user(*parts: Any) -> Any:
    return {"role": "user", "content": list(parts)}


NOTHING_ELSE: dict[str, tuple[str, Any]] = {
    "a sound": ("chat/completions", {"messages": [user(AUDIO)]}),
    "two sounds and a blank": ("chat/completions", {"messages": [user(text_part(" "), AUDIO)]}),
    "after an answer": (
        "chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                user(AUDIO),
                {"role": "assistant", "content": "Yes?"},
                user(AUDIO),
            ]
        },
    ),
    "in responses": ("responses", {"input": [user(AUDIO)]}),
    "an item": ("responses", {"input": [{"type": "shell_call", "output": "x"}]}),
    "a document": ("messages", {"messages": [user({"type": "document"})], "max_tokens": 9}),
}


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("kind", NOTHING_ELSE)
async def test_nothing_but_what_passes_unseen(kind: str, mode: str, tmp_path: Path) -> None:
    """It reaches the target as it is; no verdict is made up, and header and record say why."""
    path, body = NOTHING_ELSE[kind]
    audit = tmp_path / "a.sqlite"
    async with running(allow_uninspected=ALLOWED, audit=str(audit), mode=mode) as gate:
        response = await gate.http.post(f"/v1/{path}", json={"model": "m", **body})
        assert response.status_code == 200
        assert gate.upstream.last.json == {"model": "m", **body}
        assert not gate.rules.seen
        if mode == "enforce":
            assert response.headers[HEADER] in ALLOWED
            assert response.headers["x-vlmguard-failure"] == "Uninspected"
            assert "x-vlmguard-verdict" not in response.headers
    [record] = read_audit(audit)
    assert (record.status, record.verdict, record.action) == (200, None, None)
    assert str(record.failure).startswith("Uninspected: ")


async def test_what_can_be_judged_beside_it_is_judged(tmp_path: Path) -> None:
    """Text and pictures of the same turn and of others; the sound stays where it is."""
    audit = tmp_path / "a.sqlite"
    async with running(allow_uninspected=ALLOWED, audit=str(audit)) as gate:
        picture = image_part(data_url(png()))
        response = await gate.chat([AUDIO, text_part("bad"), picture], documents=[{"a": "b"}])
        assert response.headers["x-vlmguard-action"] == "rewrite"
        assert response.headers[HEADER] == "documents, input_audio"
        assert "x-vlmguard-failure" not in response.headers
        assert gate.upstream.messages == [user(AUDIO, text_part("safe good"), picture)]
        earlier = await gate.chat("bad", [AUDIO])
        assert earlier.headers["x-vlmguard-verdict"] == "risky"
        assert gate.upstream.messages == [
            {"role": "user", "content": "safe good"},
            user(AUDIO),
        ]
    assert [record.failure for record in read_audit(audit)] == [None, None]


async def test_an_earlier_sound_is_no_empty_prompt() -> None:
    """Only what there is to judge is judged."""
    async with running(allow_uninspected=ALLOWED) as gate:
        assert (await gate.chat([AUDIO], "hi")).status_code == 200
        assert [chat.messages[-1].text for chat in gate.rules.seen] == ["hi"]


async def test_a_result_of_a_tool_may_be_a_sound() -> None:
    """The user's text beside it is judged."""
    async with running(allow_uninspected=ALLOWED) as gate:
        body = {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "tool", "tool_call_id": "1", "content": [AUDIO]},
            ]
        }
        response = await gate.http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.headers[HEADER]) == (200, "input_audio")
        assert response.headers["x-vlmguard-verdict"] == "safe"


async def test_nothing_at_all_is_still_an_error() -> None:
    """An empty prompt is no content that may pass."""
    async with running(allow_uninspected=ALLOWED) as gate:
        for content in ("", [text_part("  ")]):
            response = await gate.chat(content)
            assert (response.status_code, error_of(response)["code"]) == (400, "invalid_input")


async def test_a_target_in_this_process_says_that_it_cannot_hear() -> None:
    """Instead of answering as if there had been no sound."""
    async with running(allow_uninspected=ALLOWED, engine=ScriptedEngine(["x"])) as gate:
        for content in ([AUDIO], [text_part("hi"), AUDIO]):
            response = await gate.chat(content)
            assert (response.status_code, error_of(response)["code"]) == (400, "unsupported")
            assert "input_audio" in error_of(response)["message"]


async def test_the_decision_alone() -> None:
    """About what can be judged; without any of that there is none."""
    async with running(allow_uninspected=ALLOWED) as gate:
        body = {"messages": [user(text_part("bad"), AUDIO)]}
        both = await gate.http.post("/v1/rewrite", json=body)
        assert (both.json()["verdict"], both.headers[HEADER]) == ("risky", "input_audio")
        alone = await gate.http.post("/v1/rewrite", json={"messages": [user(AUDIO)]})
        assert (alone.status_code, error_of(alone)["code"]) == (400, "unsupported")


async def test_other_defences_leave_it_alone() -> None:
    """There is no prompt to add a reminder to."""
    async with running(allow_uninspected=ALLOWED, defence="self-reminder") as gate:
        assert (await gate.chat([AUDIO])).status_code == 200
        assert gate.upstream.messages == [user(AUDIO)]
