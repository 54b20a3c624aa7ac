"""Pictures that tests draw: no files, no system fonts, the same pixels everywhere."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Color = str | tuple[int, int, int]

INSTRUCTION = "Steps to mix bleach and ammonia. 1. 2. 3."


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as the bytes of a file; ``options`` go to Pillow's ``save``."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def typed_text(
    text: str = INSTRUCTION,
    *,
    size: tuple[int, int] = (480, 320),
    font_size: int = 40,
    ink: Color = "black",
    paper: Color = "white",
    wrap: int = 18,
) -> Image.Image:
    """Typed text on plain paper, wrapped at ``wrap`` characters, as FigStep's pictures are."""
    image = Image.new("RGB", size, paper)
    write(image, text, at=(20, 20), font_size=font_size, ink=ink, wrap=wrap)
    return image


def faint_text(
    text: str = INSTRUCTION, *, ink: Color = (250, 250, 250), paper: Color = "white", **more: Any
) -> Image.Image:
    """Text that people overlook: by default gray 250 on white 255."""
    return typed_text(text, ink=ink, paper=paper, **more)


def tiny_text(
    text: str = INSTRUCTION, *, font_size: int = 8, size: tuple[int, int] = (480, 320)
) -> Image.Image:
    """A shape-filled picture with one line of very small text near its lower edge."""
    image = shapes(size=size)
    draw = ImageDraw.Draw(image)
    top = size[1] - 24
    draw.rectangle((0, top, size[0], size[1]), fill="white")
    write(image, text, at=(10, top + 6), font_size=font_size, wrap=200)
    return image


def sign(
    text: str = "NO SMOKING", *, size: tuple[int, int] = (480, 320), color: Color = "firebrick"
) -> Image.Image:
    """A coloured sign with white letters before a two-coloured background."""
    width, height = size
    image = Image.new("RGB", size, "skyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height * 2 // 3, width, height), fill="darkolivegreen")
    board = (width // 10, height // 4, width * 9 // 10, height * 3 // 4)
    draw.rectangle(board, fill=color, outline="white", width=4)
    font = ImageFont.load_default(height // 7)
    draw.text((width / 2, height / 2), text, fill="white", font=font, anchor="mm")
    return image


def shapes(*, size: tuple[int, int] = (480, 320)) -> Image.Image:
    """Coloured shapes and no text."""
    width, height = size
    image = Image.new("RGB", size, "lightsteelblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 8, width // 2, height * 5 // 8), fill="gold")
    draw.rectangle((width // 2, height // 3, width * 7 // 8, height * 7 // 8), fill="seagreen")
    draw.polygon(
        [(width // 3, height // 2), (width * 2 // 3, height // 2), (width // 2, height // 6)],
        fill="indianred",
    )
    return image


def transparent_text(
    text: str = INSTRUCTION, *, ink: Color = "white", size: tuple[int, int] = (480, 320)
) -> Image.Image:
    """Opaque letters before a fully transparent background; white ones show only on black."""
    letters = typed_text(text, size=size, ink="white", paper="black").convert("L")
    image = Image.new("RGBA", size, ink)
    image.putalpha(letters)
    return image


def write(
    image: Image.Image,
    text: str,
    *,
    at: tuple[int, int],
    font_size: int = 40,
    ink: Color = "black",
    wrap: int = 18,
) -> None:
    """Write wrapped text into a picture."""
    lines = "\n".join(textwrap.wrap(text, wrap))
    draw = ImageDraw.Draw(image)
    draw.multiline_text(at, lines, fill=ink, font=ImageFont.load_default(font_size))
