"""A gateway in a process of its own: killed, and with its log read for what must not be there."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image, TiffImagePlugin

from tests.gateway.common import data_url, image_part, png, text_part
from tests.gateway.faults import faulty, read_audit, says
from tests.gateway.processes import body, serving, stub
from vlmguard.gateway.keys import add_key


@pytest.mark.parametrize("form", ["sqlite", pytest.param("jsonl", marks=pytest.mark.slow)])
async def test_a_killed_gateway_loses_no_record_of_an_answered_request(
    tmp_path: Path, form: str
) -> None:
    """SIGKILL under load: whoever has an answer is in the log, with the status that was told."""
    audit = tmp_path / f"a.{form}"
    answered: dict[str, int] = {}
    async with (
        stub() as (_, target),
        serving(tmp_path, "--target", target, "--audit", str(audit)) as gateway,
        aiohttp.ClientSession(f"{gateway.url}/") as session,
    ):

        async def ask(client: int) -> None:
            number = 0
            while True:
                number += 1
                asked = body(f"bad {client} {number}", stream=number % 2 == 0)
                async with session.post("v1/chat/completions", json=asked) as response:
                    answered[response.headers["x-vlmguard-request-id"]] = response.status
                    await response.read()

        clients = [asyncio.create_task(ask(client)) for client in range(8)]
        async with asyncio.timeout(60):
            while len(answered) < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        gateway.process.send_signal(signal.SIGKILL)
        ended = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(error, aiohttp.ClientError) for error in ended)
        assert await gateway.end() == -signal.SIGKILL
    kept = {record.request_id: record.status for record in read_audit(audit)}
    assert len(answered) >= 100
    assert answered.items() <= kept.items()


PROMPT = "zz-prompt-words"
SECRETS = {
    "a prompt": PROMPT,
    "a system prompt": "zz-system-words",
    "the rewriter's answer": "zz-garbage-words",
    "the target's answer": "zz-answer-words",
    "a text in a picture's metadata": "zz-metadata-words",
    "a malformed body": "zz-malformed-words",
    "a field's value": "zz-field-words",
    "a name in a URL": "zz-path-words",
    "a query": "zz-query-words",
    "a forbidden picture": "zz-host-words",
    "the target's key": "zz-target-key",
    "a wrong key": "zz-wrong-key",
    "a cookie": "zz-cookie",
    "Basic credentials": "enotYmFzaWM6cGFzcw",
    "encoded pixels": "iVBORw0KGgo",
    "a password in a URL": "zz-password",
}


def picture_with_metadata() -> bytes:
    """A TIFF, whose tags Pillow logs at level debug."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = SECRETS["a text in a picture's metadata"]
    file = io.BytesIO()
    Image.open(io.BytesIO(png())).convert("RGB").save(file, "TIFF", tiffinfo=tags)
    return file.getvalue()


def requests() -> list[tuple[str, Any]]:
    """Paths and bodies: all that people send, and all that goes wrong."""
    parts = [text_part(PROMPT), image_part(data_url(png())), image_part(data_url(b"no picture"))]
    chat = "v1/chat/completions"
    system = {"role": "system", "content": SECRETS["a system prompt"]}
    user = {"role": "user", "content": PROMPT}
    metadata = image_part(data_url(picture_with_metadata(), "image/tiff"))
    far = f"http://u:{SECRETS['a password in a URL']}@{SECRETS['a forbidden picture']}.invalid/x"
    return [
        (chat, body(PROMPT)),
        (chat, body(PROMPT, stream=True)),
        (chat, {"model": "m", "messages": [system, user]}),
        (chat, body("", messages=[{"role": "user", "content": parts}])),
        (chat, body("", messages=[{"role": "user", "content": [metadata]}])),
        (chat, body("", messages=[{"role": "user", "content": [image_part(far)]}])),
        (chat, body("", messages=SECRETS["a field's value"])),
        (chat, SECRETS["a malformed body"].encode()),
        (f"{chat}?q={SECRETS['a query']}", body("hi")),
        (f"v1/{SECRETS['a name in a URL']}", {}),
        ("v1/rewrite", {"prompt": PROMPT}),
        ("v1/responses", {"model": "m", "input": PROMPT}),
        ("v1/messages", {"model": "m", "max_tokens": 3, "messages": [user]}),
    ]


@pytest.mark.parametrize(
    "level", ["debug", pytest.param("info", marks=pytest.mark.slow)], ids=lambda level: level
)
async def test_nothing_that_people_send_is_logged(tmp_path: Path, level: str) -> None:
    """Keys, authorization headers, data URLs, prompts and answers, also where all goes wrong."""
    keys = tmp_path / "keys.yaml"
    token, key = add_key(keys, "team")
    policy = tmp_path / "p.yaml"
    policy.write_text("name: p\non_failure: open\n")
    answers = {
        "authorization": f"Bearer {token}",
        "cookie": f"session={SECRETS['a cookie']}",
    }
    async with (
        faulty(says(SECRETS["the rewriter's answer"])) as rewriter,
        faulty(says(SECRETS["the target's answer"])) as target,
        serving(
            *(tmp_path, "--target", f"openai:m@{target.url}", "--keys", str(keys)),
            *("--rewriter", f"openai:r@{rewriter.url}?retries=0", "--detectors", "none"),
            *("--policy", str(policy), "--log-level", level),
            *("--audit", str(tmp_path / "a.sqlite"), "--target-key-env", "STUB_KEY"),
            STUB_KEY=SECRETS["the target's key"],
        ) as gateway,
        aiohttp.ClientSession(f"{gateway.url}/") as session,
    ):
        statuses = set()
        for path, asked in requests():
            data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
            async with session.post(path, data=data, headers=answers) as response:
                await response.read()
                statuses.add(response.status)
        for wrong in (f"Bearer {SECRETS['a wrong key']}", f"Basic {SECRETS['Basic credentials']}"):
            async with session.post(
                "v1/chat/completions", json=body(PROMPT), headers={"authorization": wrong}
            ) as response:
                statuses.add(response.status)
        assert {200, 400, 401, 404} <= statuses
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.end()
    said = gateway.said
    assert "its policy lets requests pass: RewriteParseError" in said
    assert f'"key_id": "{key.id}"' in said
    assert token not in said
    assert {what: secret for what, secret in SECRETS.items() if secret in said} == {}
