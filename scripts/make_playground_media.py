"""Takes the pictures of the playground for the documentation.

    python scripts/make_playground_media.py

Runs the page with the embedded model in headless Chromium and writes
``playground.png``, ``playground-compare-dark.png`` and the animation ``playground.gif`` to
``docs/media``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from vlmguard.ui import app as ui
from vlmguard.ui.examples import EXAMPLES, Example
from vlmguard.ui.settings import UiSettings

_CHROMIUM = "/usr/bin/chromium"
_FRAME_S = 0.35
_GIF_WIDTH = 760
_WAIT_MS = 180_000


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
        page = browser.new_page(viewport={"width": 1240, "height": 940})
        page.set_default_timeout(_WAIT_MS)
        page.goto(f"{url}?__theme=light")
        page.wait_for_selector("#vg-run")
        run(page, EXAMPLES[3])  # loads the models
        frames = filmed(page, EXAMPLES[2])
        write_gif(frames, given.out / "playground.gif")
        shoot(page, given.out / "playground.png")
        dark = browser.new_page(viewport={"width": 1240, "height": 940}, color_scheme="dark")
        dark.set_default_timeout(_WAIT_MS)
        dark.goto(f"{url}?__theme=dark")
        dark.get_by_role("tab", name="Compare").click()
        choose(dark, EXAMPLES[2], at=1)
        dark.click("#vg-compare")
        dark.get_by_text("Decision").wait_for()
        dark.wait_for_timeout(500)
        shoot(dark, given.out / "playground-compare-dark.png")
        browser.close()


def choose(page: Page, example: Example, *, at: int = 0) -> None:
    """Take an example, and wait until its prompt and its picture are there."""
    page.get_by_text(example.title, exact=True).nth(at).click()
    label = "Prompt to compare with" if at else "Prompt"
    expect(page.get_by_label(label, exact=True)).to_have_value(example.prompt, timeout=_WAIT_MS)
    page.wait_for_timeout(1500)


def run(page: Page, example: Example) -> None:
    """Run an example to its end."""
    choose(page, example)
    page.click("#vg-run")
    page.get_by_text("Done in").wait_for()


def filmed(page: Page, example: Example) -> list[bytes]:
    """Pictures of the page from the choice of an example to a moved threshold."""
    frames = [page.screenshot()]
    choose(page, example)
    frames.append(page.screenshot())
    page.click("#vg-run")
    page.wait_for_timeout(100)
    end = time.monotonic() + _WAIT_MS / 1000
    while time.monotonic() < end and not page.get_by_text("Done in").is_visible():
        frames.append(page.screenshot())
        page.wait_for_timeout(_FRAME_S * 1000)
    frames.append(page.screenshot())
    return frames


def shoot(page: Page, path: Path) -> None:
    """A screenshot with few colours, for a small file."""
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size:,} bytes")


def write_gif(frames: list[bytes], path: Path) -> None:
    """Frames as an animation that rests on the last one."""
    kept = [frame for at, frame in enumerate(frames) if at == 0 or frame != frames[at - 1]]
    step = max(1, len(kept) // 40)
    kept = [*kept[:-1:step], kept[-1]]
    pictures = []
    for frame in kept:
        picture = Image.open(BytesIO(frame)).convert("RGB")
        height = round(picture.height * _GIF_WIDTH / picture.width)
        picture = picture.resize((_GIF_WIDTH, height), Image.Resampling.LANCZOS)
        pictures.append(picture.quantize(128, dither=Image.Dither.NONE))
    times = [900, 900, *[350] * max(0, len(pictures) - 3), 4000][-len(pictures) :]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True
    )
    print(path, f"{path.stat().st_size:,} bytes, {len(pictures)} frames")


if __name__ == "__main__":
    main()
