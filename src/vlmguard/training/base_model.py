"""The model that is trained, from a GGUF file, a checkpoint folder or the Hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    modeling_gguf_pytorch_utils,
)

from vlmguard.engines.transformers_host import (
    load_processor,
    quiet_unless_terminal,
    takes_pictures,
)
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


def load_base(recipe: Recipe, *, plain: bool = False) -> BaseModel:
    """Load what ``recipe.model`` names.

    Args:
        recipe: names the model, and says how it is tuned.
        plain: in the checkpoint's own precision and never quantized, to merge an adapter into.

    Raises:
        ConfigError: there is no such model, or it cannot be loaded.
        ModelStoreError: a known model cannot be fetched.
        MissingExtra: QLoRA without bitsandbytes, or a GGUF file without gguf.
    """
    file = gguf_file(recipe.model)
    with _explained(recipe.model), quiet_loading():
        if file is not None:
            return _from_gguf(recipe, file)
        return _from_checkpoint(recipe, plain=plain)


def gguf_file(model: str) -> Path | None:
    """The GGUF file that a recipe's model is, if it is one."""
    if model in KNOWN:
        return ensure(model)
    path = Path(model).expanduser()
    return path.resolve() if path.suffix == ".gguf" and path.is_file() else None


def _from_gguf(recipe: Recipe, file: Path) -> BaseModel:
    if recipe.tuning == "qlora":
        raise ConfigError(f"{recipe.model}: qlora quantizes by itself; it does not take GGUF files")
    folder, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    say(f"loading {file.name} …")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.float32,
        # On CPUs, for texts of a few hundred tokens, PyTorch's fused attention takes longer than
        # the plain one: a quarter of a training step instead of an eighth.
        attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
    )
    _forget_quantization(model)
    return _assemble(
        model, tokenizer, sighted=False, facts=_facts(recipe, model, sha256=sha256_of(file))
    )


def _forget_quantization(model: Any) -> None:
    """The weights are plain by now; who believes otherwise would neither train nor save them."""
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    model.is_quantized = False


def _from_checkpoint(recipe: Recipe, *, plain: bool) -> BaseModel:
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
    say(f"loading {recipe.model} …")
    auto: Any = AutoModelForImageTextToText if sighted else AutoModelForCausalLM
    options = {"dtype": "auto"} if plain else {"dtype": _dtype(recipe), **_quantization(recipe)}
    model: Any = auto.from_pretrained(origin.model, **options, **origin.origin())
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
    """To 4 bits, as QLoRA does (Dettmers et al. 2023, arXiv 2305.14314)."""
    if recipe.tuning != "qlora":
        return {}
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("QLoRA", "qlora")
    if not torch.cuda.is_available():
        raise ConfigError("tuning: qlora needs a CUDA device; on a CPU use tuning: lora")
    config: Any = BitsAndBytesConfig
    return {
        "quantization_config": config(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }


def store_in_bf16(model: Any) -> None:
    """The frozen matrices. Autocast would convert them again in every step, to the same numbers.

    The token embedding stays: the precision of the residual stream comes from it.
    """
    kept = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight is not kept:
            module.to(torch.bfloat16)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Progress bars of transformers and of its GGUF reader only where someone sees them move."""
    reader: Any = modeling_gguf_pytorch_utils
    bar = reader.tqdm
    if not sys.stderr.isatty():
        reader.tqdm = partial(bar, disable=True)
    try:
        with quiet_unless_terminal():
            yield
    finally:
        reader.tqdm = bar


@contextmanager
def _explained(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ConfigError(f"cannot load {model}: {reason}") from error
