"""Policies: validated with errors that name the field, and mapped to the field's benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmguard.errors import ConfigError, UnknownName
from vlmguard.rewriting.policy import (
    CATEGORIES,
    CATEGORY_NAMES,
    DEFAULT_THRESHOLDS,
    PRESETS,
    Policy,
    load_policy,
    policy_template,
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_by_name(name: str) -> None:
    """strict, balanced and permissive need no file."""
    policy = load_policy(name)
    assert policy.name == name
    assert policy.threshold_for() == DEFAULT_THRESHOLDS[name]  # type: ignore[index]


def test_stricter_presets_call_more_requests_risky() -> None:
    """A lower threshold is a stricter one."""
    strict, balanced, permissive = (load_policy(name).threshold_for() for name in PRESETS)
    assert strict < balanced < permissive


def test_the_template_is_a_valid_policy_with_the_defaults(tmp_path: Path) -> None:
    """`vlmguard policy init` never writes something that `check` refuses or that changes rules."""
    path = tmp_path / "policy.yaml"
    path.write_text(policy_template())
    assert load_policy(path) == Policy(name="my-policy")


def test_calibrated_thresholds_replace_the_presets() -> None:
    """A trained rewriter brings its own; a number in the policy stands above both."""
    assert load_policy("strict").threshold_for({"strict": 0.1}) == 0.1
    assert load_policy("permissive").threshold_for({"strict": 0.1}) == 0.75
    assert Policy(threshold=0.9).threshold_for({"balanced": 0.1}) == 0.9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("threshold: 2", "threshold: "),
        ("threshold: lax", "'strict', 'balanced' or 'permissive'"),
        ("treshold: strict", "treshold: no such field; fields: name, threshold"),
        ("actions: {weapons: refuse}", "unknown categories: weapons; known: self_harm"),
        ("actions: {fraud: explode}", "actions.fraud: "),
        ("on_failure: ajar", "'closed' or 'open'"),
        ("timeout_s: -1", "greater than 0"),
        ("name: two words", "name: "),
        ("- a\n- b", "a policy is a mapping of fields, not a list"),
        ("a: [", "cannot be read as YAML"),
        ("a: \xff", "no such field"),
    ],
)
def test_errors_name_the_field_and_the_fix(tmp_path: Path, text: str, told: str) -> None:
    """Whoever edits the file sees where to look."""
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_wrong_field_is_told_at_once(tmp_path: Path) -> None:
    """One round of corrections, not one per mistake."""
    path = tmp_path / "policy.yaml"
    path.write_text("timeout_s: -1\nmax_images: 0\n")
    with pytest.raises(ConfigError, match=r"(?s)timeout_s.*max_images"):
        load_policy(path)


def test_a_missing_file_lists_the_presets() -> None:
    """A misspelt preset is the likeliest cause."""
    with pytest.raises(UnknownName, match="strict, balanced, permissive"):
        load_policy("blanced")


def test_an_empty_file_is_the_default_policy(tmp_path: Path) -> None:
    """Every field is optional."""
    path = tmp_path / "policy.yaml"
    path.write_text("")
    assert load_policy(path) == Policy()


def test_binary_files_are_refused(tmp_path: Path) -> None:
    """Not a traceback."""
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(path)


def test_actions_by_category_override_the_default() -> None:
    """And an unknown category falls back on the default."""
    policy = Policy(actions={"sexual": "refuse"})
    assert policy.action_for("sexual") == "refuse"
    assert policy.action_for("fraud") == "rewrite"
    assert policy.action_for(None) == "rewrite"


def test_the_fingerprint_follows_the_rules() -> None:
    """It is part of every cache key."""
    assert Policy().fingerprint == Policy().fingerprint
    assert Policy().fingerprint != Policy(threshold=0.4).fingerprint


def test_the_benchmarks_taxonomies_are_covered_once() -> None:
    """SIUO's nine domains and MM-SafetyBench's thirteen scenarios, each in one category."""
    siuo = [name for category in CATEGORIES for name in category.siuo]
    scenarios = [name for category in CATEGORIES for name in category.mm_safetybench]
    assert len(siuo) == len(set(siuo)) == 9
    assert sorted(name[:2] for name in scenarios) == [f"{n:02}" for n in range(1, 14)]
    assert len(set(CATEGORY_NAMES)) == len(CATEGORY_NAMES)
