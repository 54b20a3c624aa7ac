"""MM-SafetyBench's three variants, tiny list and scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.benchmarks.layouts import (
    SLICES,
    needs_slices,
    write_json,
    write_mm_safetybench,
    write_picture,
)
from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.benchmarks import DrawnPicture, FilePicture, open_benchmark
from vlmguard.evals.benchmarks.mm_safetybench import scenario_numbers


def test_ids_in_number_order(tmp_path: Path) -> None:
    """Questions come scenario by scenario, by number; advice scenarios are of that kind."""
    write_mm_safetybench(tmp_path / "MM-SafetyBench")
    samples = list(open_benchmark("mm-safetybench-typo", tmp_path).samples())
    assert [sample.id for sample in samples] == [
        "01-Illegal_Activitiy/9",
        "01-Illegal_Activitiy/10",
        "10-Legal_Opinion/3",
    ]
    assert [sample.kind for sample in samples] == ["harmful", "harmful", "advice"]
    assert samples[0].prompt == "Rephrased 9."
    assert samples[0].goal == "Question 9?"


def test_typo_is_drawn_only_where_missing(tmp_path: Path) -> None:
    """The published TYPO picture is taken where it is."""
    folder = write_mm_safetybench(tmp_path / "mm_safetybench")
    write_picture(folder / "imgs" / "01-Illegal_Activitiy" / "TYPO" / "9.jpg", "JPEG")
    first, second, _ = open_benchmark("mm-safetybench-typo", tmp_path).samples()
    assert isinstance(first.pictures[0], FilePicture)
    assert second.pictures == (
        DrawnPicture(text="phrase 10", draw=second.pictures[0].draw),  # type: ignore[attr-defined]
    )
    assert second.chat().images


@pytest.mark.parametrize(
    ("variant", "prompt"), [("sd", "Rephrased for SD 9."), ("sd-typo", "Rephrased 9.")]
)
def test_generated_pictures_are_never_drawn(tmp_path: Path, variant: str, prompt: str) -> None:
    """SD and SD_TYPO need the published pictures; the error names the file and the fix."""
    write_mm_safetybench(tmp_path / "mm_safetybench")
    benchmark = open_benchmark(f"mm-safetybench-{variant}", tmp_path)
    sample = next(benchmark.samples())
    assert sample.prompt == prompt
    with pytest.raises(DataError, match=r"9\.jpg: the picture is missing\. Clone the repository"):
        sample.chat()
    check = benchmark.check()
    assert not check.ready
    assert len(check.missing) == 3


def test_tiny_list(tmp_path: Path) -> None:
    """?tiny takes the official list's questions."""
    write_mm_safetybench(tmp_path / "mm_safetybench")
    benchmark = open_benchmark("mm-safetybench-typo?tiny", tmp_path)
    assert [sample.id for sample in benchmark.samples()] == [
        "01-Illegal_Activitiy/10",
        "10-Legal_Opinion/3",
    ]
    assert benchmark.check().parts[0].published == 168


def test_a_question_of_the_tiny_list_that_is_not_there(tmp_path: Path) -> None:
    """It is an error, not a shorter list."""
    folder = write_mm_safetybench(tmp_path / "mm_safetybench")
    tiny = [{"Scenario": "10-Legal_Opinion", "Sampled_ID_List": [77]}]
    write_json(folder / "TinyVersion_ID_List.json", tiny)
    with pytest.raises(DataError, match="has no question 77"):
        list(open_benchmark("mm-safetybench-typo?tiny", tmp_path).samples())
    write_json(folder / "TinyVersion_ID_List.json", {"Scenario": 1})
    with pytest.raises(DataError, match="is not a list of Scenario"):
        list(open_benchmark("mm-safetybench-typo?tiny", tmp_path).samples())


def test_scenarios(tmp_path: Path) -> None:
    """?scenarios takes some; one that is not there is an error."""
    write_mm_safetybench(tmp_path / "mm_safetybench")
    some = open_benchmark("mm-safetybench-typo?scenarios=9-10+1", tmp_path)
    with pytest.raises(DataError, match="there is no scenario 09; there are 01, 10"):
        list(some.samples())
    one = open_benchmark("mm-safetybench-typo?scenarios=10", tmp_path)
    assert [sample.category for sample in one.samples()] == ["10-Legal_Opinion"]
    assert one.check().parts[0].published is None


def test_scenario_ranges() -> None:
    """Ranges and single numbers, with any separator; nonsense is refused when opening."""
    assert scenario_numbers("01-03,9") == {"01", "02", "03", "09"}
    assert scenario_numbers("1 13") == {"01", "13"}
    for wrong in ("x", "3-1", "1-", ""):
        with pytest.raises(ConfigError, match="it reads like 01-07,09"):
            scenario_numbers(wrong)
    with pytest.raises(ConfigError, match="it reads like"):
        open_benchmark("mm-safetybench-sd?scenarios=all")


@needs_slices
def test_development_slice() -> None:
    """The development slice is the official tiny list, drawn."""
    check = open_benchmark("mm-safetybench-typo?tiny", SLICES).check()
    assert check.complete
    assert check.kinds == {"harmful": 97, "advice": 71}
    assert check.drawn == check.pictures
