"""The metadata at the head of a GGUF file: key-value pairs, read without loading the model.

Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). The
``gguf`` package reads it too, but takes seconds for a vocabulary of 50,000 tokens and needs
numpy; this takes some 40 ms and only keeps the keys that are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmguard.errors import ConfigError, ModelStoreError

_SCALARS = "BbHhIif?"  # value types 0..7: u8 i8 u16 i16 u32 i32 f32 bool
_STRING, _ARRAY = 8, 9
_WIDE = {10: "Q", 11: "q", 12: "d"}
_FORMATS = {**dict(enumerate(_SCALARS)), **_WIDE}
_MAX_PAIRS = 100_000  # no real file comes near; a corrupt count must not keep us busy


def read_header(path: Path, wanted: Callable[[str], bool]) -> Mapping[str, Any]:
    """The metadata whose keys are ``wanted``: numbers, strings, and lists of them.

    Raises:
        ConfigError: no such file.
        ModelStoreError: not a GGUF file, or its head is damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelStoreError(f"{path} is not a GGUF file (llama.cpp's model format)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                return _Reader(view).pairs(wanted)
            except (struct.error, ValueError, KeyError, OverflowError) as error:
                raise ModelStoreError(
                    f"{path} is damaged: its head cannot be read ({error}); fetch it again"
                ) from error


class _Reader:
    """A cursor over the file."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view
        self._at = 4

    def pairs(self, wanted: Callable[[str], bool]) -> dict[str, Any]:
        version = self._number("I")
        if version not in {2, 3}:
            raise ValueError(f"unknown version {version}")
        self._number("Q")  # count of tensors
        count = self._number("Q")
        if count > _MAX_PAIRS:
            raise ValueError(f"{count} keys")
        found = {}
        for _ in range(count):
            key = self._string().decode("utf-8", "replace")
            kind = self._number("I")
            if wanted(key):
                found[key] = self._value(kind)
            else:
                self._skip(kind)
        return found

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._view, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> bytes:
        length = self._number("Q")
        self._advance(length)
        return self._view[self._at - length : self._at]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string().decode("utf-8", "replace")
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner == _STRING:
            return [self._string().decode("utf-8", "replace") for _ in range(count)]
        code = f"<{count}{_FORMATS[inner]}"
        values = list(struct.unpack_from(code, self._view, self._at))
        self._at += struct.calcsize(code)
        return values

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._advance(self._number("Q"))
        elif kind != _ARRAY:
            self._advance(struct.calcsize(f"<{_FORMATS[kind]}"))
        else:
            inner, count = self._number("I"), self._number("Q")
            if inner == _STRING:
                for _ in range(count):
                    self._advance(self._number("Q"))
            else:
                self._advance(count * struct.calcsize(f"<{_FORMATS[inner]}"))

    def _advance(self, length: int) -> None:
        self._at += length
        if self._at > len(self._view):
            raise ValueError("it ends too early")
