"""Takes the pictures of the playground for the documentation.

    python scripts/make_playground_media.py

Runs the page with the embedded model in headless Chromium and writes
``playground.png``, ``playground-compare-dark.png`` and the animation ``playground.gif`` to
``docs/media``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, expect, sync_playwright

from vlmguard.ui import app as ui
from vlmguard.ui.examples import EXAMPLES, Example
from vlmguard.ui.settings import UiSettings

_CHROMIUM = "/usr/bin/chromium"
_FRAME_S = 0.35
_HEIGHT = 940
_GIF_WIDTH = 760
_SLIDE_STEPS = 6
_THUMB_PX = 16
_WAIT_MS = 180_000
_RISKY, _HARMLESS = EXAMPLES[2], EXAMPLES[3]
_MOVED_TO = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A picture of the page as PNG, and for how long the animation rests on it."""

    picture: bytes
    rest_s: float


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/media")
    parser.add_argument("--model", default="smollm2", help="Target and rewriter.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    settings = UiSettings(targets=(given.model,), rewriters=(given.model,))
    with ui.serving(ui.create(settings)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        light = opened(browser, url, "light")
        run(light, _HARMLESS)  # loads the models
        write_gif(filmed(light, _RISKY, threshold=_MOVED_TO), given.out / "playground.gif")
        light = opened(browser, url, "light")
        run(light, _RISKY)
        shoot(light, given.out / "playground.png")
        dark = opened(browser, url, "dark")
        compare(dark, _RISKY)
        shoot(dark, given.out / "playground-compare-dark.png")
        browser.close()


def opened(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> Page:
    """The page in a new window, ready for use."""
    page = browser.new_page(viewport={"width": 1240, "height": _HEIGHT}, color_scheme=scheme)
    page.set_default_timeout(_WAIT_MS)
    page.goto(f"{url}?__theme={scheme}")
    page.wait_for_selector("#vg-run")
    return page


def compare(page: Page, example: Example) -> None:
    """Put an example before the defences, and wait for the last of them."""
    page.get_by_role("tab", name="Compare").click()
    choose(page, example, at=1)
    page.click("#vg-compare")
    page.get_by_text("Decision").wait_for()


def choose(page: Page, example: Example, *, at: int = 0) -> None:
    """Take an example, and wait until its prompt and its picture are there."""
    page.get_by_text(example.title, exact=True).nth(at).click()
    label = "Prompt to compare with" if at else "Prompt"
    expect(page.get_by_label(label, exact=True)).to_have_value(example.prompt, timeout=_WAIT_MS)
    name = "#vg-compare-picture" if at else "#vg-picture"
    picture = page.locator(f"{name} img")
    picture.wait_for()
    page.wait_for_function("each => each.complete", arg=picture.element_handle())


def run(page: Page, example: Example) -> None:
    """Run an example to its end."""
    choose(page, example)
    page.click("#vg-run")
    page.get_by_text("Done in").wait_for()


def filmed(page: Page, example: Example, *, threshold: float) -> list[Frame]:
    """The page from the choice of an example to its answers, and to a moved threshold."""
    frames = [seen(page, rest_s=1)]
    choose(page, example)
    frames.append(seen(page, rest_s=1))
    page.click("#vg-run")
    frames += until(page, "Done in")
    frames.append(seen(page, rest_s=2.5))
    frames += slide(page, threshold)
    frames += until(page, "Decided again at")
    frames.append(seen(page, rest_s=4))
    return frames


def until(page: Page, text: str) -> list[Frame]:
    """Frames until a text is there."""
    frames = []
    end = time.monotonic() + _WAIT_MS / 1000
    while not page.get_by_text(text).is_visible():
        if time.monotonic() > end:
            raise TimeoutError(f"the page never said {text!r}")
        frames.append(seen(page))
        page.wait_for_timeout(_FRAME_S * 1000)
    return frames


def slide(page: Page, threshold: float) -> list[Frame]:
    """Drag the slider, as a visitor does; its value follows the mouse."""
    slider = page.locator("#vg-threshold input[type=range]")
    box = slider.bounding_box()
    assert box is not None
    start, y = float(slider.input_value()), box["y"] + box["height"] / 2
    frames = []
    page.mouse.move(_at(box, start), y)
    page.mouse.down()
    for step in range(1, _SLIDE_STEPS + 1):
        page.mouse.move(_at(box, start + (threshold - start) * step / _SLIDE_STEPS), y)
        frames.append(seen(page))
    page.mouse.up()
    return frames


def _at(box: FloatRect, value: float) -> float:
    # The thumb's centre stays within the track by half of its width.
    return box["x"] + _THUMB_PX / 2 + value * (box["width"] - _THUMB_PX)


def seen(page: Page, *, rest_s: float = _FRAME_S) -> Frame:
    """What the page shows now."""
    return Frame(picture=page.screenshot(), rest_s=rest_s)


def shoot(page: Page, path: Path) -> None:
    """A screenshot with few colours, for a small file."""
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size:,} bytes")


def write_gif(frames: list[Frame], path: Path) -> None:
    """Frames as an animation; of those that look alike the first stays."""
    kept: list[Frame] = []
    for frame in frames:
        if kept and kept[-1].picture == frame.picture:
            kept[-1] = replace(frame, rest_s=max(frame.rest_s, kept[-1].rest_s))
        else:
            kept.append(frame)
    pictures = []
    for frame in kept:
        picture = Image.open(BytesIO(frame.picture)).convert("RGB")
        height = round(picture.height * _GIF_WIDTH / picture.width)
        picture = picture.resize((_GIF_WIDTH, height), Image.Resampling.LANCZOS)
        pictures.append(picture.quantize(128, dither=Image.Dither.NONE))
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=[round(frame.rest_s * 1000) for frame in kept],
        loop=0,
        optimize=True,
    )
    print(path, f"{path.stat().st_size:,} bytes, {len(pictures)} frames")


if __name__ == "__main__":
    main()
