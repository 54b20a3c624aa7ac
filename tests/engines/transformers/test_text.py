"""Tokens to text: the detokenizer and the stop strings, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmguard.engines.transformers_text import Detokenizer, StopScanner


def _bytes(tokens: Sequence[int]) -> str:
    """A tokenizer with one token a byte."""
    return bytes(tokens).decode("utf-8", "replace")


def _words(tokens: Sequence[int]) -> str:
    """A tokenizer like SentencePiece's: words carry their space, the first one loses it."""
    return "".join(" " + "abcdefghij"[token] for token in tokens).removeprefix(" ")


@given(st.text())
def test_detokenizer_restores_any_text(text: str) -> None:
    """Whatever the text, its bytes come out as that text."""
    detokenizer = Detokenizer(_bytes)
    pieces = [detokenizer.push(token) for token in text.encode()]
    assert "".join([*pieces, detokenizer.flush()]) == text


@given(st.binary())
def test_detokenizer_agrees_with_decoding_at_once(data: bytes) -> None:
    """Bytes that are no text give what decoding them at once gives."""
    detokenizer = Detokenizer(_bytes)
    pieces = [detokenizer.push(token) for token in data]
    assert "".join([*pieces, detokenizer.flush()]) == _bytes(data)


def test_detokenizer_never_shows_half_a_character() -> None:
    """A character of four bytes appears with its last byte."""
    detokenizer = Detokenizer(_bytes)
    assert [detokenizer.push(token) for token in "a🙂".encode()] == ["a", "", "", "", "🙂"]


def test_detokenizer_keeps_the_space_after_a_prefix() -> None:
    """A first word has no leading space, and one that continues a text has it."""
    assert Detokenizer(_words).push(3) == "d"
    assert Detokenizer(_words, before=[0, 1]).push(3) == " d"


def test_detokenizer_spells_tokens_in_their_place() -> None:
    """An alternative is spelled as it would stand there; half a character as a replacement."""
    detokenizer = Detokenizer(_words)
    assert detokenizer.spell(1) == "b"
    detokenizer.push(0)
    assert detokenizer.spell(1) == " b"
    halfway = Detokenizer(_bytes)
    halfway.push("é".encode()[0])
    assert halfway.spell("é".encode()[1]) == "\N{REPLACEMENT CHARACTER}"


@given(
    pieces=st.lists(st.text("ab.", max_size=4)),
    stop=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
)
def test_scanner_cuts_at_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    """What passes is the text before a stop string, however it is cut into pieces."""
    text = "".join(pieces)
    passed, found = _scan(pieces, stop)
    assert (passed, found) == _scan(list(text), stop)
    assert text.startswith(passed)
    assert found == any(end in text for end in stop)
    assert found or passed == text
    assert not any(end in passed for end in stop)


def _scan(pieces: list[str], stop: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stop)
    passed = "".join([scanner.push(piece) for piece in pieces])
    return passed + scanner.flush(), scanner.found


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (("END",), ["x", "E", "N", "D", "y"], ["x", "", "", "", ""]),
        (("END",), ["E", "N", "x"], ["", "", "ENx"]),
        (("", "END"), ["abEND"], ["ab"]),
        (("b", "abc"), ["xabc"], ["xa"]),
        (("b", "ab"), ["xabc"], ["x"]),
        (("aab",), ["a", "a", "a", "b"], ["", "", "a", ""]),
    ],
)
def test_scanner_holds_back_only_what_may_be_a_stop_string(
    stop: tuple[str, ...], pieces: list[str], shown: list[str]
) -> None:
    """Text passes as soon as it cannot become a stop string; an empty one is ignored."""
    scanner = StopScanner(stop)
    assert [scanner.push(piece) for piece in pieces] == shown
