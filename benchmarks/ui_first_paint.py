"""How soon the playground shows something, against an empty Gradio page in the same run.

    python benchmarks/ui_first_paint.py

Both are served alike and opened in turn by a fresh browser context, so that nothing is cached. The
bar is a first contentful paint within 1.5 times that of the empty page (medians). The time until
the Run button is there is told beside it. Needs Chromium.
"""

from __future__ import annotations

import argparse
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


@dataclass(slots=True)
class Times:
    """Milliseconds of each visit."""

    paint: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print, and fail over the bar."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--visits", type=int, default=5)
    visits = parser.parse_args().visits
    with gr.Blocks(analytics_enabled=False, title="empty") as page:
        gr.HTML('<p id="ready">empty</p>')
    empty = Starlette()
    gr.mount_gradio_app(empty, page, path="/", ssr_mode=False)
    pages = {
        "empty": (ui.serving(empty), "#ready"),
        "playground": (ui.serving(ui.create(UiSettings())), "#vg-run"),
    }
    seen = {name: Times() for name in pages}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_CHROMIUM if _CHROMIUM.exists() else None, args=["--no-sandbox"]
        )
        with pages["empty"][0] as first, pages["playground"][0] as second:
            urls = {"empty": first, "playground": second}
            for visit in range(visits + 1):  # the first warms servers and browser
                for name, (_, selector) in pages.items():
                    times = seen[name] if visit else Times()
                    open_once(browser, urls[name], selector, times)
        browser.close()
    for name, times in seen.items():
        paint, ready = statistics.median(times.paint), statistics.median(times.ready)
        print(f"{name:<12} first paint {paint:7.0f} ms   usable {ready:7.0f} ms")
    ratio = statistics.median(seen["playground"].paint) / statistics.median(seen["empty"].paint)
    print(f"first paint is {ratio:.2f} times the empty page's; the bar is {BAR}")
    sys.exit(ratio > BAR)


def open_once(browser: Browser, url: str, selector: str, times: Times) -> None:
    """One visit with an empty cache."""
    context = browser.new_context()
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url)
    times.paint.append(float(page.evaluate(_PAINT)))
    page.wait_for_selector(selector, timeout=120_000)
    times.ready.append((time.perf_counter() - start) * 1000)
    context.close()


if __name__ == "__main__":
    main()
