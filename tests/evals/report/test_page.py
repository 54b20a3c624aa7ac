"""The page, opened in a browser as a reader would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.evals.report.material import EVIL, SECRET, evil_results, results, view
from vlmguard.evals.report import islands, write_report
from vlmguard.evals.types import Judgement

CHROMIUM = Path("/usr/bin/chromium")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jinja2", reason="the extra eval is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a usual run."""
    [path] = write_report(results(28), tmp_path_factory.mktemp("report"), ["html"])
    return path


def show(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what the browser complained about."""
    page = browser.new_page(**options)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url) if "http" in request.url else None)
    page.goto(path.as_uri())
    return page, told


def open_first(page: Any) -> None:
    """Open the first sample of the list; its content is drawn when the browser tells of it."""
    first = page.locator(".sample").first
    first.locator("summary").click()
    first.locator(".body").wait_for()


def test_page_filters_and_shows_samples(browser: Any, written: Path) -> None:
    """Filters work together, text is searched in all samples, a sample opens with all answers."""
    page, told = show(browser, written)
    count = page.locator("#count")
    assert count.inner_text() == "30 samples"
    assert page.locator(".sample").count() == 20
    page.locator("#next").click()
    assert page.locator("#place").inner_text() == "21–30 of 30"
    page.select_option("#benchmark", "xstest")
    playwright.expect(count).to_have_text("2 of 30 samples")
    page.locator("#filters button[type=reset]").click()
    playwright.expect(count).to_have_text("30 samples")
    page.select_option("#outcome", "unscored")
    playwright.expect(count).to_have_text("1 of 30 samples")
    page.select_option("#defence", "guard")
    playwright.expect(count).to_have_text("0 of 30 samples")
    page.select_option("#outcome", "")
    page.select_option("#category", "Fraud")
    playwright.expect(count).to_have_text("10 of 30 samples")
    page.fill("#text", "(GUARD, 25)")
    playwright.expect(count).to_have_text("1 of 30 samples")
    open_first(page)
    assert page.locator(".answer h4").all_inner_texts() == ["guard"]
    page.select_option("#defence", "")
    playwright.expect(page.locator(".sample[open]")).to_have_count(0)  # the list is drawn anew
    open_first(page)
    assert page.locator(".answer").count() == 5
    assert page.locator(".sample ins").count() > 0
    assert page.locator(".sample img").evaluate("image => image.decode().then(() => true)")
    assert told == []
    page.close()


def test_harmful_text_is_blurred_until_asked_for(browser: Any, written: Path) -> None:
    """By click and by key, one by one or all; hidden from screen readers until then."""
    page, told = show(browser, written)
    open_first(page)
    veils = page.locator(".answer").first.locator(".veiled")
    content = veils.first.locator(".content")
    blurred = "element => getComputedStyle(element).filter !== 'none' && element.inert"
    assert SECRET in content.text_content()
    assert content.evaluate(blurred)
    veils.first.locator(".lift").click()
    assert not content.evaluate(blurred)
    assert content.evaluate("element => element === document.activeElement")
    other = page.locator(".answer").nth(1).locator(".veiled").first
    other.get_by_role("button", name="Show harmful answer").focus()
    page.keyboard.press("Enter")
    assert not other.locator(".content").evaluate(blurred)
    page.locator("#all").focus()
    page.keyboard.press("Space")
    assert page.locator(".veiled:not(.open)").count() == 0
    page.locator("#all").click()
    assert page.locator(".veiled.open").count() == 0
    assert content.evaluate(blurred)
    page.get_by_role("button", name="Show all of this sample").click()
    assert page.locator(".veiled:not(.open)").count() == 0
    page.select_option("#benchmark", "xstest")
    playwright.expect(page.locator("#count")).to_have_text("2 of 30 samples")
    open_first(page)
    assert page.locator(".veiled").count() == 0
    assert told == []
    page.close()


def test_several_judges_are_named_at_an_answer(browser: Any, tmp_path: Path) -> None:
    """Who found what stands on the tag, and samples on which judges differ can be found."""
    found = results(4, harmless=0)
    strict = Judgement(judge="strict", metrics={"safe": 0.0})
    views = tuple(
        replace(each, answers=tuple((answer, (*said, strict)) for answer, said in each.answers))
        for each in found.views
    )
    [path] = write_report(replace(found, views=views), tmp_path, ["html"])
    page, told = show(browser, path)
    page.select_option("#outcome", "judges differ: safe")
    open_first(page)
    tags = page.locator(".answer").first.locator(".tag").all_inner_texts()
    assert tags in (
        ["safe: no · rubric:openai:judge-model, strict"],
        ["safe: yes · rubric:openai:judge-model", "safe: no · strict"],
    )
    assert page.get_by_role("heading", name="How far the judges agree").is_visible()
    assert told == []
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_page_is_accessible(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """No serious finding of axe, light or dark; nothing wider than a phone."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    [path] = write_report(results(2), tmp_path, ["html"])
    page, told = show(browser, path, color_scheme=scheme, viewport={"width": width, "height": 844})
    open_first(page)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 22, 26)") == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = axe.Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in {"serious", "critical"}]
    assert not serious, [(each["id"], each["nodes"][0]["html"]) for each in serious]
    assert told == []
    page.close()


def test_nothing_in_texts_becomes_markup(browser: Any, tmp_path: Path) -> None:
    """Tags, ends of scripts, odd line ends and template marks are text, wherever they stand."""
    [path] = write_report(evil_results(), tmp_path, ["html"])
    text = path.read_text("utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "\\u2028" in text
    page, told = show(browser, path)
    open_first(page)
    assert page.locator(".sample p").filter(has_text="alert(1)").count() > 3
    assert page.locator(".sample .body p").nth(1).text_content()
    assert page.locator("img").count() == 0
    assert "the picture is missing" in page.locator(".sample").inner_text()
    assert told == []
    page.close()


def test_many_samples_are_in_pieces(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first piece is parsed on opening; a picture stands in the page once, up to a cap."""
    monkeypatch.setattr(islands, "MAX_PICTURES", 1)
    same = view(1)
    views = tuple(replace(same, sample=replace(same.sample, id=str(n))) for n in range(300))
    [path] = write_report(replace(results(0), views=views), tmp_path, ["html"])
    assert path.read_text("utf-8").count("data:image/webp") == 1
    assert "299 pictures are left out" in path.read_text("utf-8")
    page, told = show(browser, path)
    assert page.evaluate("pieces.size") == 1
    page.fill("#text", "299")
    playwright.expect(page.locator("#count")).to_have_text("1 of 300 samples")
    assert page.evaluate("pieces.size") == 3
    assert told == []
    page.close()


class _Reader(HTMLParser):
    """Reads the page without a browser."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.kinds.append(dict(attrs).get("type") or "code")


def test_page_is_self_contained(written: Path) -> None:
    """One script of ours, all else is data; charts have titles; no address is loaded."""
    text = written.read_text("utf-8")
    reader = _Reader()
    reader.feed(text)
    assert sorted(set(reader.kinds)) == ["application/json", "code"]
    assert reader.kinds.count("code") == 1
    assert not re.search(r"""(?:src|href)=["']?https?:""", text)
    assert len(re.findall(r"<svg role=.img.", text)) == len(re.findall(r'<title id="chart', text))
    for told in ("abababababab", "inspect-ai 0.3.200", "Not one table with ours", "Pareto front"):
        assert told in text


def test_islands_survive_any_text() -> None:
    """JSON for a script element ends no element, and is the same value."""
    found = islands.to_json({"text": EVIL})
    assert "<" not in found
    assert "\\u2028" in found
    assert json.loads(found) == {"text": EVIL}


def test_empty_results_make_a_page(tmp_path: Path) -> None:
    """Nothing judged yet is said, not an error."""
    [path] = write_report(replace(results(0, harmless=0), cells=()), tmp_path, ["html"])
    assert "nothing in these results yet" in path.read_text("utf-8")
