"""The few SVG elements that the charts need. Every text and attribute is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count

_ids = count(1)

COLOURS = 8
"""Colours of the style sheet: ``c0`` … ``c7``."""
# In radii; a contender whose number has none is a circle.
_CORNERS: Mapping[int, Sequence[tuple[float, float]]] = {
    1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    2: ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    3: ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    4: ((0, 1.3), (1.2, -0.9), (-1.2, -0.9)),
}


def chart(title: str, description: str, width: float, height: float, parts: Iterable[str]) -> str:
    """An ``<svg>`` that screen readers announce by its title and description."""
    number = next(_ids)
    return (
        f'<svg role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" aria-labelledby="chart-{number}-title chart-{number}-text">'
        f'<title id="chart-{number}-title">{escape(title)}</title>'
        f'<desc id="chart-{number}-text">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    """Words; ``kind`` is a class of the style sheet."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{escape(kind)}">'
        f"{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{escape(kind)}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, *, tip: str = "") -> str:
    """A bar; ``tip`` is shown on hover."""
    told = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
        f'rx="1.5" class="{escape(kind)}">{told}</rect>'
    )


def path(points: Iterable[tuple[float, float]], kind: str) -> str:
    """Straight lines through points."""
    way = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{way}" class="{escape(kind)}"/>'


def mark(x: float, y: float, number: int, tip: str = "") -> str:
    """A marker: colour and shape both tell contender ``number``, for those who see no colours."""
    told = f"<title>{escape(tip)}</title>" if tip else ""
    radius = 6.0
    corners = _CORNERS.get(number % (len(_CORNERS) + 1))
    kind = f"fill c{number % COLOURS}"
    if corners is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}">{told}</circle>'
    way = " ".join(f"{x + a * radius:.1f},{y + b * radius:.1f}" for a, b in corners)
    return f'<polygon points="{way}" class="{kind}">{told}</polygon>'
