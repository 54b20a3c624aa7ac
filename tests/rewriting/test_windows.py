"""Long input: everything is judged, nothing is cut off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlmguard.rewriting.windows import (
    CONTEXT_CHARS,
    CONTEXT_MESSAGES,
    OVERLAP_CHARS,
    Window,
    clip_context,
    split,
)
from vlmguard.types import ImageEvidence, Message, TextBox


def seen(*lines: str) -> ImageEvidence:
    boxes = tuple(TextBox(text=line, confidence=1, box=(0, 0, 1, 1)) for line in lines)
    return ImageEvidence(sha256="0", width=1, height=1, text=boxes)


def window(text: str, *evidence: ImageEvidence) -> Window:
    return Window(turn=Message(role="user", text=text), evidence=evidence)


def test_short_input_is_one_window() -> None:
    """The ordinary case costs nothing."""
    whole = window("hello", seen("a", "b"))
    assert split(whole, 1000) == (whole,)
    assert split(whole, None) == (whole,)


@given(length=st.integers(0, 5000), size=st.integers(1, 2000))
def test_every_stretch_of_a_prompt_stands_whole_in_a_window(length: int, size: int) -> None:
    """A sentence as long as the overlap cannot hide on a boundary."""
    text = "".join(chr(0x4E00 + i % 20000) for i in range(length))
    windows = split(window(text), size)
    assert all(len(w.turn.text) <= max(size, 2 * OVERLAP_CHARS) for w in windows)
    for start in range(0, max(length - OVERLAP_CHARS, 1), 97):
        stretch = text[start : start + OVERLAP_CHARS]
        assert any(stretch in w.turn.text for w in windows)


@given(lengths=st.lists(st.integers(0, 900), max_size=30))
def test_every_line_of_a_picture_stands_in_a_window(lengths: list[int]) -> None:
    """In-image text is judged to the end, not its first hundred words."""
    lines = [chr(0x4E00 + i) * length for i, length in enumerate(lengths)]
    windows = split(window("prompt", seen(*lines)), 500)
    assert all(w.turn.text == "prompt" for w in windows)
    read = "\n".join(w.evidence[0].joined_text() for w in windows)
    for index, length in enumerate(lengths):
        assert read.count(chr(0x4E00 + index)) >= length


def test_two_long_pictures_are_both_read() -> None:
    """The second picture does not hide behind the first."""
    first, second = seen(*["a" * 90] * 20), seen(*["b" * 90] * 20, "last line")
    windows = split(window("prompt", first, second), 500)
    assert any("last line" in w.evidence[1].joined_text() for w in windows)
    assert all(len(w.evidence) == 2 for w in windows)


def test_context_is_clipped_to_the_recent_and_leaves_out_the_operator() -> None:
    """Earlier turns were judged when they came; here they give meaning only."""
    messages = [Message(role="system", text="s")]
    messages += [Message(role="user", text=f"{n} " + "x" * 2000 + " end") for n in range(20)]
    context = clip_context(messages)
    assert len(context) == CONTEXT_MESSAGES
    assert all(m.role == "user" and len(m.text) <= CONTEXT_CHARS + 5 for m in context)
    assert context[-1].text.startswith("19 ")
    assert context[-1].text.endswith("end")
