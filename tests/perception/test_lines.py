"""Lines of text: order, duplicates, geometry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlmguard.perception.lines import Box, Line, Turn, covered, in_reading_order, merged


def line(text: str, box: Box, turn: Turn = 0) -> Line:
    """A certain line."""
    return Line(text=text, confidence=1.0, box=box, turn=turn)


def words(lines: list[Line]) -> str:
    """Their texts, with spaces between."""
    return " ".join(found.text for found in lines)


def test_rows_are_read_before_columns() -> None:
    """Boxes of one row go from left to right even when their tops differ."""
    lines = [
        line("letter", (200, 2, 300, 40)),
        line("below", (0, 60, 90, 95)),
        line("write", (0, 8, 90, 38)),
        line("a", (100, 12, 120, 36)),
    ]
    assert words(in_reading_order(lines)) == "write a letter below"


def test_pages_that_are_turned() -> None:
    """A page turned by 90, 180 or 270 degrees is read as its letters stand."""
    sideways = [line("second", (0, 0, 30, 200), 90), line("first", (60, 0, 90, 200), 90)]
    assert words(in_reading_order(sideways)) == "first second"
    other_way = [line("second", (60, 0, 90, 200), 270), line("first", (0, 0, 30, 200), 270)]
    assert words(in_reading_order(other_way)) == "first second"
    over_head = [line("second", (0, 0, 200, 30), 180), line("first", (0, 60, 200, 90), 180)]
    assert words(in_reading_order(over_head)) == "first second"


def test_no_lines() -> None:
    """Nothing to order."""
    assert in_reading_order([]) == []


def test_what_is_covered() -> None:
    """A box is known when most of it lies under one line; a large box over a small line is not."""
    known = [line("x", (0, 0, 100, 20))]
    assert covered((10, 0, 90, 22), known)
    assert not covered((0, 0, 100, 100), known)
    assert not covered((0, 30, 100, 50), known)


def test_frames_that_repeat_each_other() -> None:
    """What a later frame says again at the same place is left out, elsewhere it is kept."""
    first = [line("Same text", (0, 0, 100, 20)), line("twice", (0, 40, 50, 60))]
    second = [
        line("sametext", (1, 0, 101, 20)),
        line("Same text", (0, 200, 100, 220)),
        line("new", (0, 40, 50, 60)),
    ]
    assert [found.text for found in merged([first, second])] == [
        "Same text",
        "twice",
        "Same text",
        "new",
    ]


def test_one_frame_keeps_its_repetitions() -> None:
    """Within a frame nothing is taken for a repetition."""
    rows = [line("again", (0, 0, 50, 20)), line("again", (0, 5, 50, 25))]
    assert merged([rows]) == rows


def test_moving() -> None:
    """Scaled first, then shifted."""
    assert line("x", (1, 2, 3, 4)).moved(10, 20, 2).box == (12, 24, 16, 28)


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 99), st.integers(1, 99)),
        max_size=20,
    ),
    st.sampled_from([0, 90, 180, 270]),
)
def test_ordering_loses_nothing(places: list[tuple[int, int, int, int]], turn: Turn) -> None:
    """Whatever the layout, every line comes out once."""
    lines = [line(str(at), (x, y, x + w, y + h), turn) for at, (x, y, w, h) in enumerate(places)]
    assert sorted(words(in_reading_order(lines)).split()) == sorted(words(lines).split())
