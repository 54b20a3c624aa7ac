"""The page shows records without letting them into its markup."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from tests.data.test_reader import CONTRAST, harmless, write_lines
from tests.data.test_writer import full, picture, write
from vlmguard.data import scan
from vlmguard.data.page import write_page
from vlmguard.data.worddiff import word_diff
from vlmguard.errors import DataError


def test_page_is_self_contained(tmp_path: Path) -> None:
    """Pictures are inside, the script is the one that the policy allows, nothing is loaded."""
    pytest.importorskip("pyarrow")
    write(tmp_path / "in", [full(1)])
    assert write_page(scan(tmp_path / "in"), tmp_path / "page.html", title="A set") == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert base64.b64encode(picture("family-1/1").data).decode() in page
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page
    assert "http://" not in page
    assert "https://" not in page
    for told in ("Take a pipe", "steps → injury", "safety 1 → 9.5", "Show risky prompt"):
        assert told in page


def test_records_cannot_write_markup(tmp_path: Path) -> None:
    """Every text of a record is escaped."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    texts = ("prompt", "textual", "visual", "multimodal", "rewrite")
    record = {**CONTRAST, **{name: f"{name} {evil}" for name in texts}}
    record["images"] = [{"text": [evil], "objects": [[evil, 0.5]]}]
    record["earlier"] = [{"role": "user", "text": evil}]
    path = write_lines(tmp_path / "r.jsonl", record)
    write_page(scan(path), tmp_path / "page.html", title=evil)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_only_risky_records_are_veiled(tmp_path: Path) -> None:
    """Harmless records are readable at once; a picture that is missing is said, not hidden."""
    path = write_lines(tmp_path / "r.jsonl", harmless())
    write_page(scan(path), tmp_path / "page.html", title="x")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<div class="veiled">' not in page
    gone = full(1).model_dump(mode="json")
    gone["images"] = [{"sha256": "0" * 64, "media_type": "image/png", "path": "images/x.png"}]
    write_page(scan(write_lines(tmp_path / "g.jsonl", gone)), tmp_path / "page.html", title="x")
    assert "cannot be read" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_wrong_records_leave_the_old_page(tmp_path: Path) -> None:
    """A page is replaced whole or not at all."""
    page = tmp_path / "page.html"
    page.write_text("old")
    path = write_lines(tmp_path / "r.jsonl", harmless(), "{")
    with pytest.raises(DataError):
        write_page(scan(path), page, title="x")
    assert page.read_text() == "old"
    assert write_page([], page, title="x") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "r.jsonl"]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "a b"), ("a b", ""), ("Tell me how to do it.", "Do not tell how to do it."), ("a", "a")],
)
def test_diff_gives_both_texts(before: str, after: str) -> None:
    """Same and removed pieces are the old text, same and added ones the new."""
    pieces = list(word_diff(before, after))
    assert "".join(piece.text for piece in pieces if piece.kind != "added") == before
    assert "".join(piece.text for piece in pieces if piece.kind != "removed") == after
