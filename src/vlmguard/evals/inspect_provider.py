"""Our engines as a model provider of Inspect: ``--model vlmguard/smollm2``.

What follows ``vlmguard/`` is an engine spec: ``vlmguard/openai:llava@http://localhost:8000/v1``,
``vlmguard/hf:org/model``. Inspect finds this by the entry point ``vlmguard`` of its group.
"""

from __future__ import annotations

import asyncio
from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from vlmguard.engines import Capability, Engine, open_engine
from vlmguard.errors import ConfigError, EngineRejected
from vlmguard.evals.inspect_wire import PrerequisiteError, from_config, from_inspect, to_output
from vlmguard.perception import DEFAULT_DETECTORS, DescribedEngine, Perceiver

_CONNECTIONS = 8
_CHARACTERS_A_TOKEN = 4


class EngineAPI(ModelAPI):
    """An engine behind Inspect's `ModelAPI`. Engines retry themselves; Inspect does not.

    A model that cannot see reads the text evidence of pictures in their place.

    Args:
        model_name: the engine's spec.
        base_url: for ``openai:MODEL`` without an address (``--model-base-url``).
        api_key: not taken: keys come from the environment.
        config: Inspect's.
        detectors: comma-separated eyes of a blind model, or ``none`` (``-M detectors=ocr``).
        model_args: refused.

    Raises:
        PrerequisiteError: the spec is wrong, or names what is not installed.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # Inspect's own default
        detectors: str | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if model_args:
            names = ", ".join(sorted(model_args))
            raise PrerequisiteError(
                f"vlmguard/{model_name}: unknown model argument {names}; "
                f"engine options stand in the spec: vlmguard/{model_name}?KEY=VALUE"
            )
        try:
            self.engine: Engine = open_engine(
                model_name if base_url is None else f"{model_name}@{base_url}"
            )
            if Capability.VISION not in self.engine.capabilities:
                self.engine = DescribedEngine(self.engine, _perceiver(detectors))
        except ConfigError as error:
            raise PrerequisiteError(f"vlmguard/{model_name}: {error}") from error

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002  # there are no tools to choose from
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer once.

        Raises:
            InputError: a damaged picture, a tool's message, sound or video.
            EngineError: see the tree in `vlmguard.errors`.
        """
        if tools:
            names = ", ".join(tool.name for tool in tools)
            raise EngineRejected(f"vlmguard/{self.model_name} calls no tools (offered: {names})")
        chat = await asyncio.to_thread(from_inspect, input)
        completion = await self.engine.generate(chat, from_config(config))
        return to_output(completion, self.model_name)

    async def aclose(self) -> None:
        """Free what the engine holds."""
        await self.engine.aclose()

    async def count_text_tokens(self, text: str) -> int:
        """A guess, for Inspect's limits; its own would download a tokenizer of another model."""
        return len(text) // _CHARACTERS_A_TOKEN + 1

    def max_connections(self) -> int:
        """Calls at once, where the user says nothing."""
        return _CONNECTIONS

    def connection_key(self) -> str:
        """Calls are limited by engine."""
        return self.engine.spec


def _perceiver(detectors: str | None) -> Perceiver:
    if detectors is None:
        return Perceiver(DEFAULT_DETECTORS)
    names = [name.strip() for name in detectors.split(",") if name.strip()]
    return Perceiver([] if names == ["none"] else names)


@modelapi(name="vlmguard")
def vlmguard() -> type[ModelAPI]:
    """The provider, as Inspect's registry wants it."""
    return EngineAPI
