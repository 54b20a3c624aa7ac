"""Control tokens of a GGUF model, on small files that the tests write."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from vlmguard.engines.control_tokens import ControlTokens, read_control_tokens
from vlmguard.errors import ConfigError, ModelStoreError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
VOCABULARY = {
    "hello": NORMAL,
    "<unk>": UNKNOWN,
    "<s>": CONTROL,
    "</s>": NORMAL,  # has a role below
    "<|eot_id|>": NORMAL,  # marked wrongly, as in early conversions of Llama 3
    "<｜User｜>": USER_DEFINED,
    "<think>": USER_DEFINED,
    "<table>": USER_DEFINED,
    "\n\n": USER_DEFINED,
}


def write_model(path: Path) -> Path:
    """A GGUF file with a vocabulary and no tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_string("some.text", "x" * 1000)
    writer.add_array("some.numbers", list(range(100)))
    writer.add_array("some.words", ["a", "bc"])
    writer.add_float64("some.double", 0.5)
    writer.add_token_list(list(VOCABULARY))
    writer.add_token_types(list(VOCABULARY.values()))
    writer.add_eos_token_id(3)
    writer.add_chat_template("<s>{{ messages[0].content }}\n\n<think>")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


def test_which_tokens_count(model: Path) -> None:
    """Control tokens by mark, role or shape, and what the template uses; no ordinary text."""
    expected = {"<unk>", "<s>", "</s>", "<|eot_id|>", "<｜User｜>", "<think>"}
    assert set(read_control_tokens(model).tokens) == expected


def test_only_text_with_a_control_token_changes(model: Path) -> None:
    """A ZERO WIDTH SPACE after the first character, and nothing else."""
    tokens = read_control_tokens(model)
    assert tokens.neutralize("a <s> b <table>\n\n") == "a <\u200bs> b <table>\n\n"
    for text in ("", "plain", "<table>\n\n", "< s>", "a|eot_id|>"):
        assert tokens.neutralize(text) == text


def test_no_tokens_at_all() -> None:
    """A model without control tokens changes nothing."""
    assert ControlTokens([]).neutralize("<s>") == "<s>"


@given(st.lists(st.sampled_from(["<s>", "<", "s", ">", "<|", "|>", "eot_id", "<|eot_id|>", "é"])))
def test_nothing_is_left_and_nothing_is_lost(parts: list[str]) -> None:
    """However they are nested, no token is left, and taking the spaces out gives the text back."""
    tokens = ControlTokens(["<s>", "<|eot_id|>", "<|", "|>"])
    text = "".join(parts)
    harmless = tokens.neutralize(text)
    assert not any(token in harmless for token in tokens.tokens)
    assert harmless.replace("\u200b", "") == text


def test_missing_file(tmp_path: Path) -> None:
    """A missing file and a folder are named."""
    with pytest.raises(ConfigError, match="no such file"):
        read_control_tokens(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="not a file"):
        read_control_tokens(tmp_path)


def test_damaged_files(model: Path) -> None:
    """Cut anywhere in its head or with absurd counts, a file is refused, never a crash."""
    whole = model.read_bytes()
    for end in (0, 3, 4, 10, 24, 30, 60, len(whole) // 2, len(whole) - 200):
        model.write_bytes(whole[:end])
        with pytest.raises(ModelStoreError, match=r"model\.gguf is"):
            read_control_tokens(model)
    huge = (2**63).to_bytes(8, "little")
    for at in (16, 24):  # the count of keys, the length of the first key
        model.write_bytes(whole[:at] + huge + whole[at + 8 :])
        with pytest.raises(ModelStoreError, match="damaged"):
            read_control_tokens(model)
    model.write_bytes(b"GGUF\x01\x00\x00\x00" + whole[8:])
    with pytest.raises(ModelStoreError, match="version 1"):
        read_control_tokens(model)


@given(st.binary(max_size=60))
def test_any_bytes_after_the_magic(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever follows the magic number, the reader answers or refuses."""
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + data)
    with contextlib.suppress(ModelStoreError):
        read_control_tokens(path)
