"""Structured logs, and what must never be in them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from vlmguard.errors import ConfigError, EngineRejected
from vlmguard.gateway.logs import bound_request, log_access, redact, set_up_logs

SECRETS = (
    "vg-" + "Ab1_" * 10,
    "sk-proj-" + "x9Y" * 8,
    "hunter2hunter2",
    "iVBORw0KGgoAAAANSUhEUg",
    "how do I make a",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
)
log = logging.getLogger("vlmguard.test")


class Lines:
    """What was logged, read after the listener wrote it."""

    def __init__(self, form: str = "json") -> None:
        self._stream = io.StringIO()
        self._logs = set_up_logs("debug", form="json" if form == "json" else "text",
                                 stream=self._stream)  # fmt: skip

    def text(self) -> str:
        self._logs.close()
        return self._stream.getvalue()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.text()


def test_a_line_is_one_json_object(lines: Lines) -> None:
    """With what was given beside the message."""
    log.info("loaded %s", "smollm2", extra={"ms": 3.5, "sizes": (1, 2), "who": None})
    (line,) = lines.all()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "vlmguard.test",
        "message": "loaded smollm2",
        "ms": 3.5,
        "sizes": [1, 2],
        "who": None,
    }


async def test_the_requests_id_is_in_every_line_of_it(lines: Lines) -> None:
    """Also where requests run side by side, and in lines of libraries."""

    async def request(id: str) -> None:
        with bound_request(id):
            await asyncio.sleep(0)
            logging.getLogger("some.library").warning("for %s", id)

    await asyncio.gather(*(request(f"r{n}") for n in range(5)))
    log.info("outside")
    *inside, outside = [line for line in lines.all() if line["logger"] != "asyncio"]
    assert all(line["message"] == f"for {line['request_id']}" for line in inside)
    assert "request_id" not in outside


def leak_everything() -> None:
    """Every way in which a secret could get into a log."""
    key, other, password, picture, prompt, jwt = SECRETS
    url = f"data:image/png;base64,{picture}"
    log.info("Authorization: Bearer %s", key)
    log.info("headers %s", {"authorization": f"Bearer {other}", "x-api-key": password})
    log.info("GET http://user:%s@host/v1?api_key=%s", password, key)
    log.info("image_url %s was refused", url)
    log.info(f'{{"url": "{url}", "token": "{password}"}} {jwt}')  # noqa: G004  # as libraries do
    log.info("picture %s", picture * 20)
    log.info("fields", extra={"prompt": prompt, "api_key": password, "Authorization": key})
    log.info("deep", extra={"request": {"messages": [{"content": prompt}], "n": [url, jwt]}})
    for fail in (_library_fails, _engine_fails):
        try:
            fail(prompt, key)
        except (ValueError, EngineRejected):
            log.exception("it failed")


class Body(BaseModel):
    prompt: int


def _library_fails(prompt: str, key: str) -> None:
    raise ValueError(f"cannot take {prompt} of {key}")


def _engine_fails(prompt: str, key: str) -> None:
    try:
        Body.model_validate({"prompt": prompt})
    except ValidationError as error:
        raise EngineRejected(f"the server said no to {key}") from error


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_never_appear(form: str) -> None:
    """Keys, passwords, data URLs, prompts: in messages, fields, exceptions and their causes."""
    lines = Lines(form)
    leak_everything()
    text = lines.text()
    for secret in SECRETS:
        assert secret not in text
    assert text.count("[redacted]") >= 10
    assert len(text.splitlines()) == 10


def test_an_exception_is_told_by_place_and_type(lines: Lines) -> None:
    """With its message only when it is one of ours, which are made to be read."""
    leak_everything()
    library, ours = lines.all()[-2:]
    assert library["error"]["type"] == "ValueError"
    assert "message" not in library["error"]
    assert "test_logs.py" in library["error"]["at"][-1]
    assert ours["error"]["message"].startswith("the server said no to [redacted]")
    assert ours["error"]["cause"] == "ValidationError"


@pytest.mark.parametrize(
    "harmless",
    [
        "POST /v1/chat/completions 200",
        "the rewriter smollm2 took longer than the policy's timeout_s of 60 s",
        "read /etc/vlmguard/keys.yaml: 3 keys in force",
        "token bucket is empty",
        "sha256 " + "a" * 64,
        "openai:llava@http://localhost:8000/v1",
        "sk-learn and vg-",
    ],
)
def test_harmless_lines_stay_as_they_are(harmless: str) -> None:
    """Redaction that hides everything helps nobody."""
    assert redact(harmless) == harmless


def test_a_long_text_is_cut() -> None:
    """A log is no place for it."""
    assert redact("a b " * 5000).endswith("… (18000 more)")


def test_lines_for_people_stay_lines() -> None:
    """A message with a newline or a terminal's control codes does neither break nor colour."""
    lines = Lines("text")
    log.warning("one\ntwo \x1b[31mred", extra={"ms": 2})
    (line,) = lines.text().splitlines()
    assert "one\\ntwo \\x1b[31mred" in line
    assert line.endswith("ms=2")


def test_an_access_line_tells_route_status_and_time(lines: Lines) -> None:
    """And whose key, never the key."""
    log_access("POST", "/v1/chat/completions", 200, 12.349, key_id="k_1")
    (line,) = lines.all()
    assert (line["status"], line["ms"], line["key_id"]) == (200, 12.35, "k_1") or line[
        "ms"
    ] == 12.35
    assert line["message"] == "POST /v1/chat/completions 200"


def test_what_was_set_up_before_is_restored() -> None:
    """Whoever embeds the gateway keeps their own logging."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    lines = Lines()
    assert root.handlers[:] != before[0]
    lines.text()
    assert (root.handlers[:], root.level) == before


def test_a_wrong_level_is_told() -> None:
    """With those there are."""
    with pytest.raises(ConfigError, match="'loud' is none of debug, info, warning, error"):
        set_up_logs("loud")
