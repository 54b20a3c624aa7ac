"""Between our types and Inspect's: conversations, answers, settings. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from inspect_ai._util.error import PrerequisiteError  # what its providers raise; not re-exported
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    Model,
    ModelOutput,
    ModelUsage,
    ResponseSchema,
    StopReason,
    TopLogprob,
)
from inspect_ai.model._generate_config import active_generate_config
from inspect_ai.util import JSONSchema, LimitExceededError

from vlmguard.engines import Sampling
from vlmguard.errors import InputError
from vlmguard.images import load_image
from vlmguard.types import Chat, Completion, Message, Role, TokenLogprob, Usage

__all__ = [
    "LimitExceededError",
    "PrerequisiteError",
    "active_config",
    "from_config",
    "from_inspect",
    "to_completion",
    "to_config",
    "to_inspect",
    "to_output",
]

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens"}
_FINISHED = {"max_tokens": "length", "model_length": "length"}


def to_inspect(chat: Chat) -> list[ChatMessage]:
    """A conversation as Inspect's messages; pictures as ``data:`` URLs before the text."""
    return [_message(message) for message in chat.messages]


def _message(message: Message) -> ChatMessage:
    content: str | list[Content] = message.text
    if message.images:
        content = [ContentImage(image=image.data_url()) for image in message.images]
        if message.text:
            content.append(ContentText(text=message.text))
    if message.role == "system":
        return ChatMessageSystem(content=content)
    if message.role == "assistant":
        return ChatMessageAssistant(content=content)
    return ChatMessageUser(content=content)


def from_inspect(messages: Sequence[ChatMessage]) -> Chat:
    """Inspect's messages as a conversation.

    Raises:
        InputError: a tool's message, sound, video or documents, or a damaged picture.
    """
    return Chat(messages=tuple(map(_turn, messages)))


def _turn(message: ChatMessage) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise InputError(f"messages of role {message.role!r} are not understood: no tools here")
    if isinstance(message.content, str):
        return Message(role=role, text=message.content)
    texts, images = [], []
    for part in message.content:
        if isinstance(part, ContentText):
            texts.append(part.text)
        elif isinstance(part, ContentImage):
            images.append(load_image(part.image))
        elif not isinstance(part, ContentReasoning):
            raise InputError(f"content of type {part.type!r} is not understood: text and pictures")
    return Message(role=role, text="\n".join(texts), images=tuple(images))


def to_config(sampling: Sampling) -> GenerateConfig:
    """How to generate, in Inspect's words. A grammar has none: engines refuse it before."""
    schema = sampling.json_schema
    return GenerateConfig(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=None if sampling.top_p >= 1 else sampling.top_p,
        seed=sampling.seed,
        stop_seqs=list(sampling.stop) or None,
        logprobs=True if sampling.top_logprobs else None,
        top_logprobs=sampling.top_logprobs or None,
        response_schema=None
        if schema is None
        else ResponseSchema(
            name="answer", json_schema=JSONSchema.model_validate(schema), strict=True
        ),
    )


def active_config(model: Model) -> GenerateConfig:
    """The settings that a model of the running evaluation generates with."""
    return model.config.merge(active_generate_config())


def from_config(config: GenerateConfig) -> Sampling:
    """Inspect's settings as a `Sampling`; what it leaves open is greedy, up to 512 tokens."""
    plain = Sampling()
    schema = config.response_schema
    return Sampling(
        max_tokens=plain.max_tokens if config.max_tokens is None else config.max_tokens,
        temperature=plain.temperature if config.temperature is None else config.temperature,
        top_p=plain.top_p if config.top_p is None else config.top_p,
        seed=config.seed,
        stop=tuple(config.stop_seqs or ()),
        top_logprobs=config.top_logprobs or (1 if config.logprobs else 0),
        json_schema=None
        if schema is None
        else schema.json_schema.model_dump(exclude_none=True, by_alias=True),
    )


def to_output(completion: Completion, model: str) -> ModelOutput:
    """An answer as Inspect's output."""
    usage = completion.usage
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=completion.text, model=model, source="generate"),
        stop_reason=_REASONS.get(completion.finish_reason, "unknown"),
        logprobs=None
        if completion.logprobs is None
        else Logprobs(content=list(map(_logprob, completion.logprobs))),
    )
    counted = ModelUsage(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_tokens_cache_read=usage.cached_tokens or None,
    )
    return ModelOutput(model=completion.model or model, choices=[choice], usage=counted)


def _logprob(token: TokenLogprob) -> Logprob:
    top = [TopLogprob(token=text, logprob=value) for text, value in token.top]
    return Logprob(token=token.token, logprob=token.logprob, top_logprobs=top or None)


def to_completion(output: ModelOutput, *, logprobs: bool) -> Completion:
    """Inspect's output as an answer; one without choices is an empty answer.

    Args:
        output: what a model of Inspect's said.
        logprobs: whether they were asked for.
    """
    if output.empty:
        return Completion(text="", finish_reason="stop", model=output.model)
    told = output.choices[0].logprobs
    usage = output.usage or ModelUsage()
    cached = usage.input_tokens_cache_read or 0
    return Completion(
        text=output.completion,
        finish_reason=_FINISHED.get(output.stop_reason, str(output.stop_reason)),
        usage=Usage(
            prompt_tokens=usage.input_tokens + cached + (usage.input_tokens_cache_write or 0),
            completion_tokens=usage.output_tokens,
            cached_tokens=cached,
        ),
        logprobs=tuple(_token(token) for token in (told.content if told else ()))
        if logprobs
        else None,
        model=output.model,
    )


def _token(token: Logprob) -> TokenLogprob:
    top = tuple((other.token, other.logprob) for other in token.top_logprobs or ())
    return TokenLogprob(token=token.token, logprob=token.logprob, top=top)
