"""A browser, and playgrounds to open in it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_MS = 60_000
"""How long a page may take on a busy machine."""


# Not for the session: while Playwright's synchronous API is open, no event loop can run beside it.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, where there is one."""
    api = pytest.importorskip("playwright.sync_api")
    from tests.ui.playground import chromium

    where = chromium()
    if where is None:
        pytest.skip("no Chromium is installed; apt install chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def playground_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A playground with scripted models, an audit log and a report."""
    pytest.importorskip("gradio")
    import asyncio

    from tests.ui import playground
    from tests.ui.test_parts import write_log
    from vlmguard.ui import app as ui

    folder = tmp_path_factory.mktemp("playground")
    log = folder / "audit.sqlite"
    with ThreadPoolExecutor(1) as beside:  # the browser's event loop may be open here
        beside.submit(lambda: asyncio.run(write_log(log, 30, failed=True))).result()
    reports = folder / "reports"
    reports.mkdir()
    (reports / "report.html").write_text("<h1>Results of a run</h1>")
    settings = playground.settings(audit=str(log), reports=Path(reports))
    with ui.serving(ui.create(settings)) as url:
        yield url


@pytest.fixture
def page(browser: Browser, playground_url: str) -> Iterator[Page]:
    """The page, opened anew; fails when its console has an error or it calls elsewhere."""
    with opened(browser, playground_url) as page:
        page.wait_for_selector("#vg-run")
        yield page


@contextmanager
def opened(
    browser: Browser, url: str, *, expected: str | None = None, **context: Any
) -> Iterator[Page]:
    """A page in a context of its own; fails when its console has an error or it calls elsewhere.

    Args:
        browser: in which.
        url: to open.
        expected: stands in errors that are none here.
        context: of the browser: size, colours, touch.
    """
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    try:
        made.set_default_timeout(WAIT_MS)
        page = made.new_page()
        wrong: list[str] = []
        own = "/".join(url.split("/")[:3])
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda message: wrong.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda request: wrong.extend(_outside(request.url, own)))
        page.goto(url)
        yield page
        assert [each for each in wrong if expected is None or expected not in each] == []
    finally:
        made.close()


def _outside(url: str, own: str) -> list[str]:
    return [] if url.startswith((own, "data:", "blob:")) else [f"a request to {url}"]
