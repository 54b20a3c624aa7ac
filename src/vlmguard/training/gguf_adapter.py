"""A PEFT LoRA as a GGUF file for llama.cpp.

llama.cpp's converter does two things to a LoRA: it renames the tensors, and, for models of the
Llama family, it reorders the rows of the query and key projections, since llama.cpp rotates
neighbouring pairs of a head where transformers rotates its two halves. For the low-rank factors
that means: B's rows are reordered, A stays as it is. Both are done here with the `gguf` package,
so that the 150 MB of llama.cpp's own tool chain are not needed; a test compares the logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmguard.errors import ConfigError, MissingExtra

_ROTATED_PAIRS = {"llama", "mistral"}
_PLAIN = {"qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")
_IN_VLM = re.compile(r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?layers\.")
"""Where vision-language models keep the layers of their language model."""

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Attention heads of queries and of keys."""

    queries: int
    keys: int


def convert_adapter(folder: Path, file: Path, config: Any) -> None:
    """Write the LoRA in ``folder`` (as PEFT saves it) as a GGUF adapter in f16.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        file: what is written.
        config: the base's configuration, as transformers has it.

    Raises:
        ConfigError: not a plain LoRA, or an architecture that is not known here.
        MissingExtra: gguf is not installed.
    """
    try:
        import gguf  # noqa: PLC0415
    except ImportError:
        raise MissingExtra("the GGUF export", "train") from None
    from safetensors.numpy import load_file  # noqa: PLC0415

    text = config.get_text_config()
    kind = str(text.model_type)
    if kind not in _ROTATED_PAIRS | _PLAIN:
        raise ConfigError(
            f"export.gguf: adapters of {kind} models cannot be converted here; known: "
            f"{', '.join(sorted(_ROTATED_PAIRS | _PLAIN))}. Use llama.cpp's convert_lora_to_gguf.py"
        )
    settings = json.loads((folder / "adapter_config.json").read_bytes())
    alpha = _alpha(settings)
    heads = Heads(
        queries=text.num_attention_heads,
        keys=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
    )
    architecture = _ARCHITECTURES.get(kind, kind)
    number = {name: at for at, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, text.num_hidden_layers)
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    factors = _factors(load_file(folder / "adapter_model.safetensors"))
    for (module, which), factor in factors.items():
        plain = _IN_VLM.sub("model.layers.", module)
        known = names.get_name(f"{plain}.weight", try_suffixes=(".weight",))
        if known is None:
            raise ConfigError(f"export.gguf: llama.cpp has no tensor for {module}")
        pairs = which == "B" and kind in _ROTATED_PAIRS
        ordered = _paired(module, factor, heads) if pairs else factor
        writer.add_tensor(
            f"{known}.lora_{which.lower()}", np.ascontiguousarray(ordered, dtype=np.float16)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alpha(settings: Mapping[str, Any]) -> float:
    """llama.cpp scales by alpha/r, and knows nothing else."""
    for key, usual in (("use_dora", False), ("alpha_pattern", {}), ("rank_pattern", {})):
        if settings.get(key, usual) not in (usual, None):
            raise ConfigError(f"export.gguf: {key} has no counterpart in llama.cpp")
    alpha = float(settings["lora_alpha"])
    return alpha * float(settings["r"]) ** 0.5 if settings.get("use_rslora") else alpha


def _factors(tensors: Mapping[str, Array]) -> dict[tuple[str, str], Array]:
    found: dict[tuple[str, str], Array] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.match(name)
        if match is None:
            raise ConfigError(f"export.gguf: {name} is not a factor of a LoRA on a linear layer")
        found[match["module"], match["factor"]] = tensor
    return found


def _paired(module: str, factor: Array, heads: Heads) -> Array:
    """Rows of B from halves of a head to neighbouring pairs."""
    kind = module.rpartition(".")[2]
    if kind not in {"q_proj", "k_proj"}:
        return factor
    count = heads.queries if kind == "q_proj" else heads.keys
    rows, rank = factor.shape
    halves = factor.reshape(count, 2, rows // count // 2, rank)
    return halves.swapaxes(1, 2).reshape(rows, rank)
