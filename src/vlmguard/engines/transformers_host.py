"""The weights of a transformers model, and the one thread that works with them.

Engines that differ only in their adapter share a host, so the base is in memory once.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_torchvision_available

from vlmguard.engines.transformers_adapters import Adapters
from vlmguard.engines.transformers_inputs import ChatFormat
from vlmguard.engines.transformers_weights import Weights, explained, is_out_of_memory
from vlmguard.errors import ConfigError, EngineUnavailable
from vlmguard.models.notices import say

T = TypeVar("T")


def takes_pictures(weights: Weights) -> bool:
    """Whether it is a vision-language model, by its configuration file alone.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
    """
    with explained(weights.model):
        settings, _ = PreTrainedConfig.get_config_dict(weights.model, **weights.files())
    return settings.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or (
        weights.trust_remote_code and "AutoModelForImageTextToText" in settings.get("auto_map", {})
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to answer. Only its host's thread touches it.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: of the model.
        format: how it writes a chat.
        adapters: that can be put on it.
        eos: ids that end an answer.
        context: tokens that prompt and answer may have together; ``None`` when it does not say.
    """

    model: Any
    tokenizer: Any
    format: ChatFormat
    adapters: Adapters
    eos: frozenset[int]
    context: int | None


class Host:
    """A thread that loads a model on first use and then works for all who share it, in turn."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._loaded: LoadedModel | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"hf:{weights.model}")

    def submit(self, work: Callable[[LoadedModel], T]) -> Future[T]:
        """Run this in the thread when those before are done; first come, first served.

        The future raises `ConfigError` when the model cannot be loaded; the next call tries again.
        """
        return self._thread.submit(self._run, work)

    def close(self) -> Future[None]:
        """Free the memory when those before are done."""
        closed = self._thread.submit(self._unload)
        self._thread.shutdown(wait=False)
        return closed

    def _run(self, work: Callable[[LoadedModel], T]) -> T:
        try:
            if self._loaded is None:
                self._loaded = _load(self.weights)
            return work(self._loaded)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # not before the handler ends: the traceback holds the tensors
        raise EngineUnavailable(
            f"{self.weights.model} ran out of memory. Send shorter prompts or smaller pictures "
            "(max_pixels=500000), load it with dtype=bfloat16, or choose a smaller model"
        )

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded = None
            free_memory()


_hosts: dict[Weights, tuple[Host, int]] = {}
_hosts_lock = threading.Lock()


def acquire(weights: Weights) -> Host:
    """The host of these weights, shared with all who hold it. Loads nothing yet."""
    with _hosts_lock:
        host, holders = _hosts.get(weights) or (Host(weights), 0)
        _hosts[weights] = (host, holders + 1)
        return host


def release(host: Host) -> Future[None] | None:
    """Give up a host; the last one to do so gets a future that ends when the memory is free."""
    with _hosts_lock:
        _, holders = _hosts.pop(host.weights)
        if holders > 1:
            _hosts[host.weights] = (host, holders - 1)
            return None
    return host.close()


def free_memory() -> None:
    """Return what is no longer used to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(weights: Weights) -> LoadedModel:
    device = _device(weights.device)
    vision = takes_pictures(weights)
    say(f"loading {weights.model} on {device or 'every GPU'} …")
    with explained(weights.model), quiet_unless_terminal():
        config = AutoConfig.from_pretrained(weights.model, **weights.origin())
        processor: Any
        if vision:
            processor = load_processor(weights, config)
        else:
            processor = AutoTokenizer.from_pretrained(weights.model, **weights.origin())
        tokenizer = processor.tokenizer if vision else processor
        # Before the weights, which take the time: is it a chat model at all?
        chat_format = ChatFormat(processor, name=weights.model, vision=vision)
        model = _load_weights(weights, config, device, vision=vision)
    eos = _eos(model.generation_config, tokenizer)
    pad = tokenizer.pad_token_id
    # `Sampling` says everything; a model's own penalties and temperature must not slip in.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=sorted(eos) or None,
        pad_token_id=pad if pad is not None else min(eos, default=0),
        bos_token_id=tokenizer.bos_token_id,
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        format=chat_format,
        adapters=Adapters(model),
        eos=eos,
        context=getattr(config.get_text_config(), "max_position_embeddings", None),
    )


def _load_weights(
    weights: Weights, config: PreTrainedConfig, device: torch.device | None, *, vision: bool
) -> Any:
    auto: Any = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = auto.from_pretrained(
        weights.model,
        dtype=_dtype(weights.dtype, config, device),
        device_map="auto" if device is None else None,
        **weights.origin(),
    )
    return (model if device is None else model.to(device)).eval()


def load_processor(weights: Weights, config: PreTrainedConfig) -> Any:
    """The processor of a vision-language model; without torchvision, not its part for videos.

    Raises:
        ConfigError: it processes no pictures.
        ImportError: it needs another package; the message names it.
    """
    auto: Any = AutoProcessor
    try:
        processor = auto.from_pretrained(weights.model, **weights.origin())
    except ImportError:
        # Many processors bring one for videos, which needs torchvision. Pictures do not.
        if is_torchvision_available() or type(config) not in PROCESSOR_MAPPING:
            raise
        kind = _without_videos(PROCESSOR_MAPPING[type(config)])
        processor = kind.from_pretrained(weights.model, **weights.origin())
    if getattr(processor, "image_processor", None) is None:
        raise ConfigError(
            f"{weights.model} is a vision-language model without an image processor: "
            "preprocessor_config.json is missing"
        )
    return processor


def _without_videos(kind: Any) -> Any:
    """This class of processors without the part that processes videos."""
    parts = kind.get_attributes()
    if "video_processor" not in parts:
        return kind
    at = parts.index("video_processor")

    class WithoutVideos(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [*parts[:at], *parts[at + 1 :]]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            loaded = super()._get_arguments_from_pretrained(*args, **kwargs)
            return [*loaded[:at], None, *loaded[at:]]

    return WithoutVideos


def _device(asked: str) -> torch.device | None:
    """``None`` spreads the model over all GPUs."""
    if asked == "auto":
        return None if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(asked)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={asked}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device=cpu, or install a build of torch with CUDA"
        )
    return device


def _dtype(asked: str, config: PreTrainedConfig, device: torch.device | None) -> Any:
    if asked != "auto":
        return getattr(torch, asked)
    on_cpu = device is not None and device.type == "cpu"
    if on_cpu and getattr(config, "dtype", None) is torch.float16:
        return torch.bfloat16  # as small, and many times faster there
    return "auto"


def _eos(generation: GenerationConfig, tokenizer: Any) -> frozenset[int]:
    ids = generation.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(int(at) for at in (*listed, tokenizer.eos_token_id) if at is not None)


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Progress bars only where someone sees them move."""
    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    if shown and not sys.stderr.isatty():
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
