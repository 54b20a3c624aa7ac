"""Other people's words in a text for a model: quoted on one line, with nothing hidden in them.

Prompts, texts in pictures and models' answers may try to pose as instructions, as another line of
what surrounds them, or as tokens of a chat template. Whatever quotes them quotes them here.
"""

from __future__ import annotations

import re
import unicodedata

_TEMPLATE_TOKEN = re.compile(
    r"<\|[^|<>]{0,64}\|>"  # ChatML, Llama 3, Phi …
    r"|<\|[a-z_]{1,32}>|<[a-z_]{1,32}\|>"  # half-open forms
    r"|</?(?:s|bos|eos|pad|unk|mask|image|video|audio|think|tool_call|tool_response|img|row_\d+"
    r"_col_\d+|start_of_turn|end_of_turn|start_of_image|end_of_image|end_of_utterance"
    r"|fake_token_around_image|global-img)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|IMG|IMG_BREAK|IMG_END)\]"
    r"|<</?SYS>>",
    re.IGNORECASE,
)
_LOOK_ALIKE = str.maketrans({"<": "‹", ">": "›", "[": "⟦", "]": "⟧"})
_SPACES = re.compile(r"[^\S\n]{3,}")
_NEWLINES = re.compile(r"\s*\n\s*")


def _tag_to_ascii(character: str) -> str:
    """Unicode tag characters (U+E0020..U+E007E) are invisible to people and read by models."""
    point = ord(character)
    return chr(point - 0xE0000) if 0xE0020 <= point <= 0xE007E else character


def visible(text: str) -> str:
    """The text as a reader would see it, with what hides from readers brought to light.

    Compatibility forms are folded (NFKC), invisible format and control characters dropped, tag
    characters turned into the letters that they smuggle, chat-template tokens into look-alikes.
    Only the rewriter's view is changed by this; a harmless prompt is passed on byte for byte.
    """
    text = "".join(map(_tag_to_ascii, text)) if not text.isascii() else text
    text = unicodedata.normalize("NFKC", "\n".join(text.splitlines()))
    text = "".join(
        character
        for character in text
        if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co"}
    )
    return _TEMPLATE_TOKEN.sub(lambda match: match.group().translate(_LOOK_ALIKE), text)


def quote(text: str, *, line_break: str = " \\n ") -> str:
    """One quoted line that the quoted text cannot leave.

    Args:
        text: anything.
        line_break: stands for a run of newlines. With spaces around it, since small models read
            ``\\nmake`` as ``nmake``.
    """
    flat = visible(text).strip().replace("\\", "\\\\").replace('"', '\\"')
    flat = _NEWLINES.sub(lambda _: line_break, flat)
    return f'"{_SPACES.sub("  ", flat)}"'
