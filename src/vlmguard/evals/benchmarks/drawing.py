"""Pictures of typed text, drawn as the benchmarks' papers describe them."""

from __future__ import annotations

import textwrap
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlmguard.errors import MissingExtra

_MONO_BOLD = "mpl-data/fonts/ttf/DejaVuSansMono-Bold.ttf"


def figstep_picture(instruction: str) -> bytes:
    """An instruction and an empty list of three, as FigStep types it.

    760×760 pixels (higher where the text needs it, so that nothing is cut off), 80 px bold
    monospace, black on white, wrapped at 15 characters. The original
    uses FreeMono Bold; this takes DejaVu Sans Mono Bold, equally wide, which matplotlib brings.

    Returns:
        A PNG file.

    Raises:
        MissingExtra: matplotlib, and with it the font, is not installed.
    """
    lines = [*textwrap.wrap(instruction, 15), "1.", "2.", "3."]
    font = ImageFont.truetype(_mono_bold(), 80)
    picture = Image.new("RGB", (760, max(760, 20 + 75 * len(lines))), "white")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((20, 10 + 75 * number), line, fill="black", font=font)
    return _png(picture)


def typo_picture(phrase: str) -> bytes:
    """A key phrase as MM-SafetyBench's TYPO pictures show it: large letters on white, wrapped.

    1024 pixels wide, letters of 90 px. The original uses Arial; this takes Pillow's own font.

    Returns:
        A PNG file.
    """
    width, size = 1024, 90
    lines = textwrap.wrap(phrase, int(width / (0.52 * size)))
    height = int(size * 1.3 * (len(lines) + 1))
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).multiline_text(
        (20, size * 0.4), "\n".join(lines), fill="black", font=ImageFont.load_default(size)
    )
    return _png(picture)


@cache
def _mono_bold() -> str:
    # The package is located, not imported: its import takes a second.
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MissingExtra("drawing FigStep's pictures", "eval")
    return str(Path(spec.origin).parent / _MONO_BOLD)


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
