"""From a chat to what a transformers model takes: the chat template, image slots and pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from PIL import Image as PILImage

from vlmguard.errors import ConfigError, EngineRejected, UnsupportedCapability
from vlmguard.images import decode
from vlmguard.types import Chat, Image, Message

_BREAK = "\N{ZERO WIDTH SPACE}"
_PROBE = "vlmguardprobe"  # a word no template writes by itself
_REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a template, or a processor, may raise about a chat."""


class ChatFormat:
    """How one model writes a chat.

    Args:
        processor: of a vision-language model; or the tokenizer of a text model.
        name: of the model, for messages.
        vision: whether it takes pictures.

    Raises:
        ConfigError: there is no chat template, or it does not work.
    """

    def __init__(self, processor: Any, *, name: str, vision: bool) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer if vision else processor
        self._name = name
        self._vision = vision
        self._template = _template(processor, self._tokenizer, name)
        control = _control_tokens(processor, self._tokenizer, self._template)
        self._control_ids = _ids(self._tokenizer, control)
        breakable = (token for token in control if len(token) > 1 and _BREAK not in token)
        longest_first = sorted(breakable, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        try:
            self._render([Message(role="user", text=_PROBE)])
        except _REFUSALS as error:
            raise ConfigError(f"the chat template of {name} does not work: {error}") from error
        self._takes_system = self._renders(Message(role="system", text=_PROBE))
        self._places_pictures = vision and self._has_image_slot()

    def encode(self, chat: Chat, *, max_pixels: int | None = None) -> dict[str, Any]:
        """The keyword arguments of the model's ``forward``: tensors of a batch of one, on the CPU.

        Args:
            chat: any roles in any order that the model's template accepts.
            max_pixels: pictures with more pixels are scaled down, keeping their shape.

        Raises:
            InputError: a picture cannot be decoded.
            EngineRejected: the template or the processor refuses the chat.
            UnsupportedCapability: it has pictures, and the template no place for them.
        """
        if chat.images and not self._places_pictures:
            raise UnsupportedCapability(
                f"{self._name}: its chat template has no place for pictures"
            )
        messages = chat.messages if self._takes_system else _fold_system(chat.messages)
        try:
            prompt = self._render([self._safe(message) for message in messages])
            return self._tensors(prompt, [_pixels(image, max_pixels) for image in chat.images])
        except _REFUSALS as error:
            raise EngineRejected(f"{self._name} cannot write this chat: {error}") from error

    def neutralize(self, text: str) -> str:
        """The text with every control token broken up, so that it reads the same and is only text.

        A zero-width space goes after the first character of each.

        Raises:
            EngineRejected: a control token cannot be broken up, or the text is not Unicode.
        """
        if half := re.search(r"[\ud800-\udfff]", text):
            raise EngineRejected(
                f"{self._name}: character {half.start()} of the text is U+{ord(half[0]):04X}, half "
                "of a surrogate pair; decode the text properly, or remove it"
            )
        while self._pattern.search(text):  # again: breaking one token may uncover another
            text = self._pattern.sub(_broken, text)
        written = self._control_ids.intersection(
            self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        )
        if written:
            token = self._tokenizer.convert_ids_to_tokens(min(written))
            raise EngineRejected(
                f"{self._name}: the text contains its control token {token!r}, "
                "which cannot be written as text; remove it"
            )
        return text

    def _safe(self, message: Message) -> Message:
        return replace(message, text=self.neutralize(message.text))

    def _render(self, messages: Sequence[Message]) -> str:
        continued = messages[-1].role == "assistant"
        return self._apply(
            [self._as_template_takes_it(message) for message in messages],
            add_generation_prompt=not continued,
            continue_final_message=continued,
        )

    def _apply(self, conversation: list[dict[str, Any]], **options: bool) -> str:
        # The tokenizer does this as the processor does, and without asking for its videos.
        prompt: str = self._tokenizer.apply_chat_template(
            conversation, chat_template=self._template, tokenize=False, **options
        )
        return prompt

    def _as_template_takes_it(self, message: Message) -> dict[str, Any]:
        if not self._vision:
            return {"role": message.role, "content": message.text}
        parts: list[dict[str, str]] = [{"type": "image"} for _ in message.images]
        if message.text or not parts or message.role == "assistant":
            parts.append({"type": "text", "text": message.text})
        return {"role": message.role, "content": parts}

    def _tensors(self, prompt: str, pictures: list[PILImage.Image]) -> dict[str, Any]:
        bos = self._tokenizer.bos_token
        options: dict[str, Any] = {
            "return_tensors": "pt",
            "verbose": False,  # about its length; the engine checks that
            # A template that writes the first token itself must not get a second one.
            "add_special_tokens": self._vision and not (bos and prompt.startswith(bos)),
        }
        if pictures:
            options["images"] = [pictures]
        return dict(self._processor(text=[prompt], **options))

    def _renders(self, first: Message) -> bool:
        """Whether the text of this message reaches the model before a user's turn."""
        try:
            return _PROBE in self._render([first, Message(role="user", text="?")])
        except _REFUSALS:
            return False

    def _has_image_slot(self) -> bool:
        text = {"type": "text", "text": "?"}
        try:
            blind, seeing = (
                self._apply([{"role": "user", "content": content}])
                for content in ([text], [{"type": "image"}, text])
            )
        except _REFUSALS:
            return False
        return bool(blind != seeing)


def _template(processor: Any, tokenizer: Any, name: str) -> str:
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ConfigError(
            f"{name} has no chat template, so it is not a chat model: choose an instruction-tuned "
            "one, or put its chat_template.jinja into the folder"
        )
    return str(template)


def _control_tokens(processor: Any, tokenizer: Any, template: str) -> frozenset[str]:
    """Tokens that a user must not be able to write: turns, image slots, ends.

    All special ones, the processor's placeholders, and markup that was added to the vocabulary and
    that the template writes (``<tool_call>``). Other added tokens are ordinary text: Gemma has HTML
    tags among them, and a fine-tune may have added words.
    """
    added = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and re.search(r"[^\w\s]", token.content))
    }
    slots = {
        value
        for key, value in vars(processor).items()
        if isinstance(value, str) and key.endswith(("_token", "_tag"))
    }
    found = {str(token) for token in (*tokenizer.all_special_tokens, *added, *slots)}
    return frozenset(token for token in found if token.strip())


def _ids(tokenizer: Any, tokens: Iterable[str]) -> frozenset[int]:
    ids = {tokenizer.convert_tokens_to_ids(token) for token in tokens}
    return frozenset(ids - {None, tokenizer.unk_token_id})  # strange characters may become <unk>


def _broken(match: re.Match[str]) -> str:
    return match[0][0] + _BREAK + match[0][1:]


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """For templates without a system role: what it says opens the next user turn."""
    folded: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message)
            continue
        if message.role == "user":
            folded.append(_as_user([*waiting, message]))
        else:
            folded += [_as_user(waiting), message] if waiting else [message]
        waiting = []
    return [*folded, _as_user(waiting)] if waiting else folded


def _as_user(messages: Sequence[Message]) -> Message:
    return Message(
        role="user",
        text="\n\n".join(message.text for message in messages if message.text),
        images=tuple(image for message in messages for image in message.images),
    )


def _pixels(image: Image, max_pixels: int | None) -> PILImage.Image:
    """The first view: RGB, upright."""
    frame = decode(image).frames[0]
    pixels = frame.width * frame.height
    if max_pixels is None or pixels <= max_pixels:
        return frame
    scale = math.sqrt(max_pixels / pixels)
    size = (max(1, int(frame.width * scale)), max(1, int(frame.height * scale)))
    return frame.resize(size, PILImage.Resampling.LANCZOS)
