"""Adapters in GGUF: llama.cpp computes with them what transformers computes with PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.training.conftest import LIBRARIES_OWN_WARNINGS
from vlmguard.errors import ConfigError
from vlmguard.training.gguf_adapter import convert_adapter

xllamacpp = pytest.importorskip("xllamacpp")

pytestmark = LIBRARIES_OWN_WARNINGS

WORDS = 64
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
PROMPT = [1, 7, 12, 40, 7, 33, 21, 9]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def word(number: int) -> str:
    """The text of a token, different for each."""
    return f"w{number:02d}"


def write_base(model: Any, file: Path) -> None:
    """A model as llama.cpp's converter writes it, in f32, with made-up words for tokens."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(WORDS)
    tokens = ["<unk>", "<s>", "</s>", *(word(number) for number in range(3, WORDS))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([2, 3, 3, *([1] * (WORDS - 3))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    number = {name: at for at, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows, columns = values.shape
            halves = values.reshape(heads, 2, rows // heads // 2, columns)
            values = halves.swapaxes(1, 2).reshape(rows, columns)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None
        writer.add_tensor(known, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(base: Path, adapter: Path | None) -> dict[str, float]:
    """The likeliest next words, with the logarithms of their probabilities."""
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.n_ctx, params.n_parallel = 256, 1
    params.verbosity, params.warmup, params.fit_params = -1, False, False
    params.cpuparams.n_threads = 1
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": PROMPT, "max_tokens": 1, "logprobs": 8})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    # Control tokens have no text here.
    return {entry["token"]: entry["logprob"] for entry in top if entry["token"].startswith("w")}


def expected(model: Any) -> torch.Tensor:
    """The same by transformers, for all tokens."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([PROMPT])).logits[0, -1]
    return torch.log_softmax(logits, dim=-1)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_llama_cpp_computes_the_same_as_peft(kind: str, tmp_path: Path) -> None:
    """With the converted adapter, llama.cpp's probabilities are those of the PEFT model."""
    config, auto = MODELS[kind]
    torch.manual_seed(0)
    plain = auto(config(**SIZES)).eval()
    write_base(plain, tmp_path / "base.gguf")
    bare = expected(plain)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS, init_lora_weights=False)
    model: Any = get_peft_model(plain, lora).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.25)
    model.save_pretrained(str(tmp_path))
    convert_adapter(tmp_path, tmp_path / "adapter.gguf", plain.config)
    adapted = expected(model)
    for adapter, right in ((None, bare), (tmp_path / "adapter.gguf", adapted)):
        got = llama_cpp(tmp_path / "base.gguf", adapter)
        assert len(got) >= 5
        for token, logprob in got.items():
            assert logprob == pytest.approx(float(right[int(token[1:])]), abs=0.02)
    assert float((bare - adapted).abs().max()) > 0.5  # the adapter matters


def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path) -> None:
    """Another architecture, DoRA and trained embeddings are errors that say so."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SIZES))
    lora = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    model: Any = get_peft_model(plain, lora)
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="use_dora"):
        convert_adapter(tmp_path, tmp_path / "a.gguf", plain.config)
    plain.config.model_type = "mamba"  # type: ignore[misc]  # a class attribute elsewhere
    with pytest.raises(ConfigError, match="mamba"):
        convert_adapter(tmp_path, tmp_path / "a.gguf", plain.config)
    assert not (tmp_path / "a.gguf").exists()
