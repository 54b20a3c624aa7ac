"""What users of other guards asked for, where no other test says it; and the page of all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.drawing import encode, typed_text
from tests.gateway.common import Running, data_url, image_part, running, text_part
from tests.gateway.faults import read_audit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/gateway-requirements.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_the_page_names_is_there(file: str, name: str) -> None:
    """A promise without its test is none."""
    path = ROOT / (file if "/" in file else f"tests/gateway/{file}")
    assert re.search(rf"^(async )?def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_line_of_the_page_names_a_test() -> None:
    """The last column is never empty."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(lines) > 15
    assert all("::test_" in line.split("|")[-2] for line in lines)


async def test_text_and_pictures_of_all_turns_are_judged_together(gate: Running) -> None:
    """The rewriter sees every turn so far with all its pictures, in one look."""
    pictures = [encode(typed_text(f"picture {number}")) for number in range(4)]
    parts = [image_part(data_url(picture)) for picture in pictures]
    first = [text_part("one"), parts[0], text_part("two"), parts[1]]
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [parts[2], parts[3], text_part("and these")]},
    ]
    body = {"model": "m", "messages": messages}
    assert (await gate.http.post("/v1/chat/completions", json=body)).status_code == 200
    judged = gate.rules.seen[-1]
    assert [image.data for image in judged.images] == pictures
    assert [message.role for message in judged.messages] == ["user", "assistant", "user"]
    assert "one" in judged.messages[0].text
    assert "two" in judged.messages[0].text
    assert judged.messages[2].text == "and these"


async def test_refused_requests_are_recorded_too(tmp_path: Path) -> None:
    """With the decision, though the target was never asked."""
    policy = tmp_path / "p.yaml"
    policy.write_text("name: hard\ndefault_action: refuse\n")
    audit = tmp_path / "a.sqlite"
    async with running(policy=str(policy), audit=str(audit)) as gate:
        response = await gate.chat("bad")
        assert not gate.upstream.received
    [record] = read_audit(audit)
    assert record.request_id == response.headers["x-vlmguard-request-id"]
    assert (record.verdict, record.action, record.status) == ("risky", "refuse", 200)
    assert record.category == "violence"
