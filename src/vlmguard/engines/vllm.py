"""Models run by vLLM in this process, for synthesis in the workers of a Ray cluster.

::

    vllm:org/model
    vllm:/path/to/folder?max_model_len=16384&tensor_parallel_size=2

Opening neither loads the model nor imports vLLM: a run on a cluster opens its models on a machine
that may have no GPU. The first request loads it, in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future

from vlmguard.engines.base import Capability, Sampling, require
from vlmguard.engines.spec import EngineSpec
from vlmguard.engines.vllm_host import Host, Job
from vlmguard.engines.wire import messages_body, prefix_of
from vlmguard.errors import ConfigError
from vlmguard.types import Chat, Completion, Delta


def open_vllm(spec: EngineSpec) -> VLLMEngine:
    """``vllm:MODEL[?…]``. Cheap: checks the options, and loads nothing yet.

    Options, by vLLM's names: ``dtype``, ``quantization``, ``revision``, ``max_model_len``,
    ``gpu_memory_utilization``, ``tensor_parallel_size``, ``enforce_eager``, ``trust_remote_code``;
    and ``vision=false`` for models that take no pictures.

    Raises:
        ConfigError: no model is named, or an unknown option or value.
    """
    options = spec.take(
        dtype=str,
        quantization=str,
        revision=str,
        max_model_len=int,
        gpu_memory_utilization=float,
        tensor_parallel_size=int,
        enforce_eager=bool,
        trust_remote_code=bool,
        vision=bool,
    )
    if not spec.value:
        raise ConfigError(f"{spec}: name a model: vllm:org/model or vllm:/path/to/folder")
    vision = bool(options.pop("vision", True))
    return VLLMEngine(spec.value, spec=str(spec), vision=vision, arguments=options)


class VLLMEngine:
    """A model in this process. Safe to use from several tasks, threads and event loops.

    Args:
        model: name on the Hugging Face Hub, or a folder.
        spec: the string that opens it again.
        vision: whether it takes pictures.
        arguments: of ``vllm.LLM``, besides the model.
    """

    def __init__(
        self,
        model: str,
        *,
        spec: str | None = None,
        vision: bool = True,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        self.spec = spec or f"vllm:{model}"
        able = {Capability.LOGPROBS, Capability.JSON_SCHEMA, Capability.PREFIX}
        self.capabilities = frozenset(able | {Capability.VISION} if vision else able)
        self._model = model
        self._arguments = dict(arguments or {})
        self._host: Host | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<VLLMEngine {self.spec}>"

    async def load(self) -> None:
        """Load the weights.

        Raises:
            MissingExtra: vLLM is not installed here.
            ConfigError: vLLM cannot load the model, or is too old.
        """
        await asyncio.wrap_future(self._submit(Job(messages=None)))

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once, in a batch with the calls that come at the same time.

        Raises:
            UnsupportedCapability: more was asked for than ``capabilities``.
            InputError: an empty conversation, or text that is not valid Unicode.
            EngineRejected: vLLM refuses the request, e.g. since it is too long.
            EngineUnavailable: vLLM failed.
            ConfigError, MissingExtra: see `load`.
        """
        require(self, chat, sampling)
        messages = messages_body(chat)
        job = Job(messages=messages, sampling=sampling, continued=bool(prefix_of(chat)))
        return await asyncio.wrap_future(self._submit(job))

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """The whole answer in one piece; raises as `generate`."""
        whole = await self.generate(chat, sampling)
        yield Delta(text=whole.text, finish_reason=whole.finish_reason, usage=whole.usage)

    async def aclose(self) -> None:
        """Free the model, after the calls before. A later call loads it again."""
        with self._lock:
            host, self._host = self._host, None
        if host is not None:
            await asyncio.wrap_future(host.close())

    def _submit(self, job: Job) -> Future[Completion]:
        with self._lock:
            if self._host is None:
                self._host = Host(self._model, self.spec, self._arguments)
            self._host.give(job)
        return job.future
