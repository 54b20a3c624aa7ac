"""The playground beside the gateway's API: `vlmguard serve --playground`, a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio")
pytest.importorskip("aiohttp")

from playwright.sync_api import Browser, expect

from tests.gateway.processes import SCRIPT
from tests.ui.conftest import WAIT_MS, opened
from vlmguard.cli.main import app as commands
from vlmguard.errors import ConfigError
from vlmguard.gateway.keys import add_key

ANSWERS = {"safe good": "Here is a safe answer.", "*": "Here is any answer."}
PASSWORD = "for the page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A gateway with the playground.

    Attributes:
        url: of the gateway, without a slash at its end.
        key: of its API.
        audit: its log.
    """

    url: str
    key: str
    audit: Path

    def ask(self, prompt: str, *, key: str | None = None) -> httpx.Response:
        """A request to the API."""
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {key}"} if key else {},
            json={"model": "m", "messages": [{"role": "user", "content": prompt}]},
            timeout=60,
        )


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve with scripted models, a key, an audit log and a password, on a port that is free."""
    for name, script in (("rewriter", SCRIPT), ("target", ANSWERS)):
        (folder / f"{name}.json").write_text(json.dumps(script))
    token, _ = add_key(folder / "keys.yaml", "ann")
    audit = folder / "audit.sqlite"
    command = [
        *(sys.executable, "-m", "vlmguard", "serve", "--port", "0", "--playground"),
        *("--target", f"scripted:{folder}/target.json"),
        *("--rewriter", f"scripted:{folder}/rewriter.json"),
        *("--keys", str(folder / "keys.yaml"), "--audit", str(audit)),
        *("--playground-password-env", "PAGE"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PAGE": PASSWORD}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        rest = threading.Thread(target=process.stderr.read)  # so that the pipe never fills
        try:
            told, url = "", ""
            while "startup complete" not in told:
                line = process.stderr.readline()
                told += line
                assert line, told
                if found := re.search(r"Playground on (http\S+)/playground/", line):
                    url = found[1]
            rest.start()
            yield Served(url=url, key=token, audit=audit)
        finally:
            process.kill()
            if rest.ident is not None:
                rest.join()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests here."""
    with served(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--workers", "2"], {}, "--workers 1"),
        (["--keys", "keys.yaml"], {}, "--playground-password-env"),
        (["--host", "0.0.0.0"], {}, "--playground-password-env"),
        (["--playground-password-env", "PAGE"], {"PAGE": ""}, "PAGE holds no password"),
    ],
)
def test_a_page_that_would_be_a_way_past_the_keys_is_refused(
    options: list[str],
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is served."""
    monkeypatch.chdir(tmp_path)
    add_key(Path("keys.yaml"), "ann")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        commands(["serve", "--port", "0", "--playground", *options], standalone_mode=False)


@pytest.mark.slow
def test_keys_open_the_api_and_the_password_the_page(gateway: Served) -> None:
    """Neither is open without, and one does not stand for the other."""
    assert gateway.ask("hello").status_code == 401
    answer = gateway.ask("hello", key=gateway.key)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWERS["*"]

    page = f"{gateway.url}/playground/"
    with httpx.Client(base_url=page, timeout=60) as client:
        assert client.get("config").status_code == 401
        assert client.get("config", headers={"authorization": gateway.key}).status_code == 401
        wrong = client.post("login", data={"username": "vlmguard", "password": "wrong"})
        assert wrong.status_code == 400
        right = client.post("login", data={"username": "vlmguard", "password": PASSWORD})
        assert right.status_code == 200
        assert client.get("config").json()["title"] == "VLMGuard-R1 playground"
    assert httpx.get(f"{gateway.url}/health/live").json() == {"status": "ok"}
    assert httpx.get(f"{gateway.url}/nowhere").status_code == 404


@pytest.mark.slow
def test_the_page_decides_beside_the_api(gateway: Served, browser: Browser) -> None:
    """It loads under its path, guards with the gateway's models, and shows the API's decisions."""
    # The browser itself notes that the page was not open before the password.
    with opened(browser, f"{gateway.url}/playground/", expected="401") as page:
        page.get_by_label("Username").fill("vlmguard")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#vg-run")
        page.get_by_label("Prompt", exact=True).fill("a bad thing")
        page.click("#vg-run")
        page.get_by_text("Done in").wait_for()
        expect(page.locator("#vg-gauge")).to_contain_text("Risky")
        expect(page.locator("#vg-rewritten")).to_contain_text("safe good")
        expect(page.locator("#vg-guarded .content")).to_have_text(ANSWERS["safe good"])

        # While the page is open the API answers, and only its requests are noted.
        answer = gateway.ask("a bad thing, asked by a client", key=gateway.key)
        assert answer.json()["choices"][0]["message"]["content"] == ANSWERS["safe good"]
        page.get_by_role("tab", name="Audit").click()
        told = page.locator("#vg-audit-told")
        page.get_by_role("combobox", name="Verdict").click()
        page.get_by_role("option", name="risky").click()
        expect(told).to_contain_text("1 decision (1 risky)", timeout=WAIT_MS)
