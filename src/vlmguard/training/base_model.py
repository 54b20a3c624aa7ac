"""The model that is trained, from a GGUF file, a checkpoint folder or the Hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from vlmguard.engines.transformers_host import load_processor, takes_pictures
from vlmguard.engines.transformers_inputs import ChatFormat
from vlmguard.engines.transformers_weights import Weights
from vlmguard.errors import ConfigError, MissingExtra
from vlmguard.models import KNOWN, ensure
from vlmguard.models.notices import say
from vlmguard.models.store import is_offline, sha256_of
from vlmguard.rewriting.metadata import BaseFacts
from vlmguard.training.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A model and everything that belongs to it.

    Attributes:
        model: as transformers loads it, without an adapter.
        processor: of a vision-language model, or the tokenizer of a text model.
        tokenizer: the text part of the processor.
        format: how it writes a chat; the same object that the engine uses.
        sighted: it takes pictures.
        end: ids that end an answer; the first is what the completion is trained to end with.
        context: tokens that it can hold; ``None`` when it does not say.
        facts: for the adapter's metadata.
    """

    model: Any
    processor: Any
    tokenizer: Any
    format: ChatFormat
    sighted: bool
    end: tuple[int, ...]
    context: int | None
    facts: BaseFacts


def load_base(recipe: Recipe, *, weights: bool = True) -> BaseModel:
    """Load what ``recipe.model`` names.

    Args:
        weights: ``False`` builds the model without memory for its parameters (on torch's meta
            device), for a dry run of a big one.

    Raises:
        ConfigError: there is no such model, or it cannot be loaded.
        ModelStoreError: a known model cannot be fetched.
        MissingExtra: QLoRA without bitsandbytes, or a GGUF file without gguf.
    """
    file = _gguf_file(recipe.model)
    with _explained(recipe.model), quiet_unless_terminal():
        if file is not None:
            return _from_gguf(recipe, file, weights=weights)
        return _from_checkpoint(recipe, weights=weights)


def _gguf_file(model: str) -> Path | None:
    if model in KNOWN:
        return ensure(model)
    path = Path(model).expanduser()
    return path.resolve() if path.suffix == ".gguf" and path.is_file() else None


def _from_gguf(recipe: Recipe, file: Path, *, weights: bool) -> BaseModel:
    if recipe.tuning == "qlora":
        raise ConfigError(f"{recipe.model}: qlora quantizes by itself; it does not take GGUF files")
    folder, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model: Any
    if weights:
        say(f"loading {file.name} …")
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    else:
        model = _hollow(AutoConfig.from_pretrained(folder, gguf_file=name), sighted=False)
    _forget_quantization(model)
    return _assemble(
        model, tokenizer, sighted=False, facts=_facts(recipe, model, sha256=sha256_of(file))
    )


def _forget_quantization(model: Any) -> None:
    """The weights are plain by now; who believes otherwise would neither train nor save them."""
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    model.is_quantized = False


def _from_checkpoint(recipe: Recipe, *, weights: bool) -> BaseModel:
    folder = Path(recipe.model).expanduser()
    origin = Weights(
        model=str(folder.resolve()) if folder.is_dir() else recipe.model,
        revision=recipe.revision,
        trust_remote_code=recipe.trust_remote_code,
        offline=is_offline(),
    )
    sighted = takes_pictures(origin)
    config = AutoConfig.from_pretrained(origin.model, **origin.origin())
    processor: Any
    if sighted:
        processor = load_processor(origin, config)
    else:
        processor = AutoTokenizer.from_pretrained(origin.model, **origin.origin())
    model: Any
    if weights:
        say(f"loading {recipe.model} …")
        auto: Any = AutoModelForImageTextToText if sighted else AutoModelForCausalLM
        model = auto.from_pretrained(
            origin.model, dtype=_dtype(recipe), **_quantization(recipe), **origin.origin()
        )
    else:
        model = _hollow(config, sighted=sighted)
    return _assemble(
        model, processor, sighted=sighted, facts=_facts(recipe, model, sighted=sighted)
    )


def _assemble(model: Any, processor: Any, *, sighted: bool, facts: BaseFacts) -> BaseModel:
    tokenizer = processor.tokenizer if sighted else processor
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    chat = ChatFormat(processor, name=facts.name, vision=sighted)
    return BaseModel(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        format=chat,
        sighted=sighted,
        end=_end(model, processor, tokenizer, sighted=sighted),
        context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        facts=facts,
    )


def _facts(
    recipe: Recipe, model: Any, *, sha256: str | None = None, sighted: bool = False
) -> BaseFacts:
    return BaseFacts(
        name=recipe.model,
        architecture=str(model.config.model_type),
        sha256=sha256,
        revision=getattr(model.config, "_commit_hash", None) or recipe.revision,
        sighted=sighted,
    )


_PROBE = "vlmguardprobe"


def _end(model: Any, processor: Any, tokenizer: Any, *, sighted: bool) -> tuple[int, ...]:
    """Ids that end an answer; the one that the chat template writes after an answer comes first."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    listed = ids if isinstance(ids, list) else [ids]
    known = [int(at) for at in (*listed, tokenizer.eos_token_id) if at is not None]
    if not known:
        raise ConfigError("the model has no token that ends an answer (eos_token)")
    said: Any = [{"type": "text", "text": _PROBE}] if sighted else _PROBE
    chat = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    written = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    tail = tokenizer.encode(written.rpartition(_PROBE)[2], add_special_tokens=False)
    first = next((at for at in tail if at in known), known[-1])
    return (first, *dict.fromkeys(at for at in known if at != first))


def _dtype(recipe: Recipe) -> torch.dtype:
    """Trained weights are kept in fp32 (autocast computes in bf16); frozen ones may be bf16."""
    frozen = recipe.tuning != "full"
    if frozen and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _quantization(recipe: Recipe) -> dict[str, Any]:
    if recipe.tuning != "qlora":
        return {}
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401, PLC0415
    except ImportError:
        raise MissingExtra("QLoRA (bitsandbytes, on CUDA)", "qlora") from None
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }


def _hollow(config: Any, *, sighted: bool) -> Any:
    auto: Any = AutoModelForImageTextToText if sighted else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Progress bars of transformers only where someone sees them move."""
    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    if shown and not sys.stderr.isatty():
        bars.disable_progress_bar()
    bar = modeling_gguf_pytorch_utils.tqdm  # the GGUF reader has one of its own
    if not sys.stderr.isatty():
        modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
        if shown:
            bars.enable_progress_bar()


@contextmanager
def _explained(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ConfigError(f"cannot load {model}: {reason}") from error
