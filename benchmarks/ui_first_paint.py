"""How soon the playground shows something, against an empty Gradio page in the same run.

    python benchmarks/ui_first_paint.py

Both are served alike and opened in turn by a fresh browser context, so that nothing is cached. The
bar is a first contentful paint within 1.5 times that of the empty page: medians of each round, and
the median round. The time until the Run button is there is told beside it. Needs Chromium.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from playwright.sync_api import Browser, sync_playwright
from starlette.applications import Starlette

from vlmguard.ui import app as ui
from vlmguard.ui.settings import UiSettings

BAR = 1.5
_CHROMIUM = Path("/usr/bin/chromium")
_PAINT = """() => new Promise((done) => {
  const told = performance.getEntriesByName('first-contentful-paint');
  if (told.length) { done(told[0].startTime); return; }
  new PerformanceObserver((list, observer) => {
    for (const entry of list.getEntries()) {
      if (entry.name === 'first-contentful-paint') { observer.disconnect(); done(entry.startTime); }
    }
  }).observe({ type: 'paint', buffered: true });
})"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page, and a selector of what makes it usable."""

    name: str
    url: str
    ready: str


@dataclass(slots=True)
class Times:
    """Milliseconds of each visit."""

    paint: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print, and fail over the bar."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--visits", type=int, default=5, help="Of each page in a round.")
    given = parser.parse_args()
    with gr.Blocks(analytics_enabled=False, title="empty") as page:
        gr.HTML('<p id="ready">empty</p>')
    empty = Starlette()
    gr.mount_gradio_app(empty, page, path="/", ssr_mode=False)
    playground = ui.create(UiSettings())
    with (
        ui.serving(empty) as first,
        ui.serving(playground) as second,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=_CHROMIUM if _CHROMIUM.exists() else None, args=["--no-sandbox"]
        )
        pages = [Page(name="empty", url=first, ready="#ready")]
        pages.append(Page(name="playground", url=second, ready="#vg-run"))
        visit(browser, pages, 1)  # warms servers and browser
        rounds = [visit(browser, pages, given.visits) for _ in range(given.rounds)]
        browser.close()
    ratios = []
    for number, seen in enumerate(rounds, start=1):
        for name, times in seen.items():
            paint, ready = statistics.median(times.paint), statistics.median(times.ready)
            print(f"{number}  {name:<12} first paint {paint:7.0f} ms   usable {ready:7.0f} ms")
        paints = [statistics.median(seen[page.name].paint) for page in pages]
        ratios.append(paints[1] / paints[0])
    ratio = statistics.median(ratios)
    print(
        f"first paint is {ratio:.2f} times the empty page's ({min(ratios):.2f} to "
        f"{max(ratios):.2f}); the bar is {BAR}; load {os.getloadavg()[0]:.1f}"
    )
    sys.exit(ratio > BAR)


def visit(browser: Browser, pages: list[Page], visits: int) -> dict[str, Times]:
    """Open each page so many times, in turn, either one first as often as the other."""
    seen = {page.name: Times() for page in pages}
    for number in range(visits):
        for page in pages if number % 2 else reversed(pages):
            open_once(browser, page, seen[page.name])
    return seen


def open_once(browser: Browser, page: Page, times: Times) -> None:
    """One visit with an empty cache."""
    context = browser.new_context()
    opened = context.new_page()
    start = time.perf_counter()
    opened.goto(page.url)
    times.paint.append(float(opened.evaluate(_PAINT)))
    opened.wait_for_selector(page.ready, timeout=120_000)
    times.ready.append((time.perf_counter() - start) * 1000)
    context.close()


if __name__ == "__main__":
    main()
