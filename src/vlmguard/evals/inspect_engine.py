"""Inspect's models as engines.

::

    inspect:openai/gpt-4o   inspect:vllm/org/model   inspect:ollama/llava   inspect:hf/org/model
    inspect:role/grader     what --model-role grader=… names, within a run of Inspect

Whatever Inspect has a provider for can be target, rewriter or judge. Keys and base URLs come from
the environment variables that Inspect's providers read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmguard.engines import Capability, EngineSpec, Sampling, require
from vlmguard.errors import (
    ConfigError,
    EngineTimeout,
    EngineUnavailable,
    MissingExtra,
    VLMGuardError,
)
from vlmguard.types import Chat, Completion, Delta

if TYPE_CHECKING:
    from inspect_ai.model import Model

_ROLE = "role"
_OFFERED = {
    Capability.VISION: True,
    Capability.LOGPROBS: False,
    Capability.JSON_SCHEMA: False,
}
"""What a provider can do is not told by Inspect; the spec may say otherwise."""


class InspectEngine:
    """A model of Inspect's as an engine. Retries and connection limits are Inspect's.

    Args:
        find: gives the model when it is needed; a role is bound only while Inspect runs.
        capabilities: what it can do.
        spec: the string that opens this engine again.
    """

    def __init__(
        self, find: Callable[[], Model], *, capabilities: frozenset[Capability], spec: str
    ) -> None:
        self._find = find
        self.capabilities = capabilities
        self.spec = spec

    async def load(self) -> None:
        """Nothing to do ahead: providers load with the first call."""

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once.

        Raises:
            ConfigError: the provider lacks a key or a package; says which.
            EngineTimeout, EngineUnavailable: the provider gave up.
            UnsupportedCapability: more was asked for than ``capabilities``.
        """
        from vlmguard.evals.inspect_wire import (  # noqa: PLC0415  # slow to import
            LimitExceededError,
            PrerequisiteError,
            to_completion,
            to_config,
            to_inspect,
        )

        require(self, chat, sampling)
        try:
            output = await self._find().generate(to_inspect(chat), config=to_config(sampling))
        except (VLMGuardError, LimitExceededError):
            raise  # an engine of ours behind Inspect; a limit of Inspect's run
        except PrerequisiteError as error:
            raise ConfigError(f"{self.spec}: {error.message}") from error
        except TimeoutError as error:
            raise EngineTimeout(f"{self.spec}: it took too long") from error
        except Exception as error:
            # Every provider raises its own library's errors; Inspect has retried what it could.
            raise EngineUnavailable(
                f"{self.spec}: {type(error).__name__}: {str(error)[:500]}"
            ) from error
        return to_completion(output, logprobs=sampling.top_logprobs > 0)

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """The whole answer as one piece."""
        whole = await self.generate(chat, sampling)
        yield Delta(text=whole.text, finish_reason=whole.finish_reason, usage=whole.usage)

    async def aclose(self) -> None:
        """Nothing to free: Inspect shares its models and closes them."""


def open_inspect(spec: EngineSpec) -> InspectEngine:
    """``inspect:PROVIDER/MODEL`` or ``inspect:role/NAME``, with options.

    What a provider can do is not told by Inspect, so ``vision`` (assumed), ``logprobs`` and
    ``json_schema`` (not assumed) may be told as options; the others are ``retries``, ``timeout``
    (s) and ``base_url``.

    Raises:
        ConfigError: no such provider, or it lacks a key or a package.
        MissingExtra: Inspect is not installed.
    """
    if importlib.util.find_spec("inspect_ai") is None:
        raise MissingExtra("Inspect's models", "eval")
    options: dict[str, Any] = spec.take(
        retries=int, timeout=int, base_url=str, **{str(name): bool for name in _OFFERED}
    )
    provider, slash, name = spec.value.partition("/")
    if not (provider and slash and name):
        raise ConfigError(f"{spec}: name a provider and a model, e.g. inspect:openai/gpt-4o")
    from inspect_ai.model import GenerateConfig, get_model  # noqa: PLC0415

    config = GenerateConfig(max_retries=options.get("retries", 4), timeout=options.get("timeout"))
    if provider == _ROLE:
        find = partial(get_model, role=name, required=True, config=config)
    else:
        try:
            model = get_model(spec.value, config=config, base_url=options.get("base_url"))
        except Exception as error:
            # Providers check keys and packages when they are made, each with its own error.
            raise ConfigError(f"{spec}: {str(error).strip() or type(error).__name__}") from error
        find = partial(get_model, model)
    return InspectEngine(
        find,
        capabilities=frozenset(
            name for name, usual in _OFFERED.items() if options.get(str(name), usual)
        ),
        spec=str(spec),
    )
