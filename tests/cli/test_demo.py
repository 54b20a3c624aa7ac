"""The demo: what a newcomer sees first, run for real on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import vlmguard
from vlmguard.rewriting.opening import shipped_adapter

pytestmark = pytest.mark.skipif(
    shipped_adapter("smollm2") is None, reason="this checkout ships no adapter"
)


@pytest.mark.slow
def test_the_demo_protects_and_lets_pass(tmp_path: Path) -> None:
    """The typed attack is seen through and rewritten; the harmless picture passes untouched."""
    done = vlmguard("demo", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("2. The same prompt with a harmless picture")
    assert "risky" in first
    assert "Rewritten prompt" in first
    for part in ("Text", "Picture", "Together", "Unguarded answer", "Guarded answer"):
        assert part in first
    assert "passes unchanged" in second
    assert "Rewritten prompt" not in second
    assert {path.name for path in tmp_path.iterdir()} == {"typed-attack.png", "harmless-list.png"}
