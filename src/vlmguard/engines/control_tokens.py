"""Keeps text from being read as control tokens.

llama.cpp renders a conversation through the model's chat template and then tokenizes the whole,
control tokens included. So a user who writes ``<|im_end|>`` ends their own turn and may go on as
the system or the assistant. `ControlTokens.neutralize` puts a ZERO WIDTH SPACE (U+200B) after the
first character of every such string: it looks the same, says the same, and is tokenized as plain
text. Text without such a string stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmguard.engines.gguf_header import read_header

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama.cpp's enum llama_token_type
_MARKER = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_ROLES = ("bos", "eos", "eot", "eom")
_ZERO_WIDTH_SPACE = "\u200b"


class ControlTokens:
    """The strings that a model's tokenizer takes for control tokens.

    Args:
        tokens: the strings.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        # Longest first, so that a token is broken before another one inside it.
        usable = {token for token in tokens if len(token) > 1 and _ZERO_WIDTH_SPACE not in token}
        self.tokens = tuple(sorted(usable, key=lambda token: (-len(token), token)))
        self._pattern = re.compile("|".join(map(re.escape, self.tokens)) or r"(?!)")

    def neutralize(self, text: str) -> str:
        """The text with every control token in it broken up by a ZERO WIDTH SPACE."""
        while self._pattern.search(text):  # again, for those that overlapped
            text = self._pattern.sub(_break_up, text)
        return text


def read_control_tokens(model: Path) -> ControlTokens:
    """The control tokens of a GGUF model.

    These are the tokens marked as control or unknown, those that have a role (end of text, …) or
    the shape ``<|…|>`` (llama.cpp promotes these to control tokens whatever they are marked as),
    and the user-defined ones that the model's own chat template uses, such as ``<think>``. Other
    user-defined tokens are ordinary text (runs of spaces, HTML tags) and stay.

    Raises:
        ConfigError: no such file.
        ModelStoreError: not a GGUF file, or damaged.
    """
    header = read_header(
        model, lambda key: key.startswith("tokenizer.") and not key.endswith((".merges", ".scores"))
    )
    tokens: list[str] = header.get("tokenizer.ggml.tokens", [])
    kinds: list[int] = header.get("tokenizer.ggml.token_type", [])
    kinds += [1] * (len(tokens) - len(kinds))
    templates = "\n".join(
        value
        for key, value in header.items()
        if key.startswith("tokenizer.chat_template") and isinstance(value, str)
    )
    found = {
        token
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in {_UNKNOWN, _CONTROL}
        or _MARKER.fullmatch(token)
        or (kind == _USER_DEFINED and token.strip() and token in templates)
    }
    return ControlTokens(found | set(_with_a_role(header, tokens)))


def _with_a_role(header: Mapping[str, Any], tokens: list[str]) -> Iterable[str]:
    for role in _ROLES:
        index = header.get(f"tokenizer.ggml.{role}_token_id", -1)
        if isinstance(index, int) and 0 <= index < len(tokens):
            yield tokens[index]


def _break_up(found: re.Match[str]) -> str:
    return f"{found[0][0]}{_ZERO_WIDTH_SPACE}{found[0][1:]}"
