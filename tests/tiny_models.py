"""Tiny, randomly initialized models with tokenizer, processor and chat template, built offline.

They take the same path through transformers as the real families: the same classes, file layout,
image slots and special tokens. They prove the path, not the quality: what they answer is noise,
but noise that depends on every token and pixel, so a lost picture or a shifted prompt shows.

`save_qwen2_vl`, `save_idefics3` (the classes of SmolVLM), `save_llava` and `save_llama` (text only)
write a folder as `from_pretrained` reads it, in well under a second each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import of transformers

import torch
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers import decoders as token_decoders
from tokenizers import models as token_models
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

CONTEXT = 2048
"""Tokens that each of them can hold; a token is about one byte of text."""

_SPREAD = 0.2  # standard deviation of the weights: enough for the answers to depend on the input

QWEN2_VL_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

IDEFICS3_TEMPLATE = """\
<|im_start|>{%- for message in messages -%}
{{ message['role'] | capitalize }}:
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ ' ' + part['text'] }}{%- endif -%}
{%- endfor -%}<end_of_utterance>
{% endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}"""

LLAVA_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != 'system' -%}{{ message['role'] | upper }}: {% endif -%}
{%- for part in message['content'] if part['type'] == 'image' -%}<image>
{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{{- '</s>' if message['role'] == 'assistant' else ' ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}"""

LLAMA_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['user', 'assistant'] -%}
{{- raise_exception('Only user and assistant roles are supported!') -}}
{%- endif -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Roles must alternate user/assistant/user/assistant!') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}[INST] {{ message['content'] | trim }} [/INST]
{%- else -%}{{ ' ' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}"""
"""Refuses the system role and repeated roles, as some real ones do."""


def save_qwen2_vl(folder: Path) -> Path:
    """A Qwen2-VL: pictures of any shape, a slot of one token for each 28x28 pixels."""
    control = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = _byte_level_tokenizer(
        eos="<|im_end|>", pad="<|endoftext|>", control=[*control, "<|video_pad|>"]
    )
    number = _numbers(tokenizer)
    config = Qwen2VLConfig(
        text_config={
            **_text_settings(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "num_heads": 2,
            "initializer_range": _SPREAD,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    _save_model(Qwen2VLForConditionalGeneration, config, folder)
    # The processor's own class needs torchvision, for videos: write its parts instead.
    pictures = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 8)
    pictures.save_pretrained(folder)
    tokenizer.chat_template = QWEN2_VL_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def save_idefics3(folder: Path) -> Path:
    """An Idefics3, which SmolVLM is: big pictures are cut into tiles, plus one of the whole."""
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    control = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", *tiles]
    tokenizer = _byte_level_tokenizer(eos="<end_of_utterance>", pad="<|im_end|>", control=control)
    config = Idefics3Config(
        text_config={"model_type": "llama", **_text_settings(tokenizer)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": _SPREAD,
        },
        image_token_id=_numbers(tokenizer)("<image>"),
        scale_factor=2,
    )
    _save_model(Idefics3ForConditionalGeneration, config, folder)
    Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS3_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """A LLaVA-1.5: CLIP and Llama, every picture cropped to one square of 16 tokens."""
    tokenizer = _byte_level_tokenizer(eos="</s>", pad="<pad>", control=["<s>", "<image>"])
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            initializer_factor=10 * _SPREAD,
        ),
        text_config=LlamaConfig(**_text_settings(tokenizer)),
        image_token_index=_numbers(tokenizer)("<image>"),
        image_seq_length=16,
    )
    _save_model(LlavaForConditionalGeneration, config, folder)
    LlavaProcessor(  # type: ignore[no-untyped-call]
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    """A Llama without eyes, with a tokenizer like SentencePiece's and a strict template."""
    tokenizer = _sentencepiece_like_tokenizer()
    tokenizer.chat_template = LLAMA_TEMPLATE
    _save_model(LlamaForCausalLM, LlamaConfig(**_text_settings(tokenizer)), folder)
    tokenizer.save_pretrained(folder)
    return folder


VLMS: dict[str, Callable[[Path], Path]] = {
    "qwen2_vl": save_qwen2_vl,
    "idefics3": save_idefics3,
    "llava": save_llava,
}
"""Family → what writes it."""

FAMILIES: dict[str, Callable[[Path], Path]] = {**VLMS, "llama": save_llama}
"""The same with the text-only one."""


def save_adapter(base: Path, folder: Path, *, seed: int = 0) -> Path:
    """A random LoRA on the attention of a folder written above; it changes every answer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    seeing = hasattr(AutoConfig.from_pretrained(base), "vision_config")
    auto = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=32
        )
        adapted = get_peft_model(auto.from_pretrained(base), config)
    adapted.save_pretrained(str(folder))
    return folder


def _save_model(kind: type[PreTrainedModel], config: Any, folder: Path, *, seed: int = 0) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)


def _text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": _SPREAD,
    }


def _numbers(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], int]:
    def number(token: str) -> int:
        found = tokenizer.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found

    return number


def _byte_level_tokenizer(*, eos: str, pad: str, control: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a byte, as GPT-2 spells bytes, without any merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        token_models.BPE(vocab={byte: at for at, byte in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (eos, pad, *control)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=list(control),
        model_max_length=CONTEXT,
    )


def _sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """Letters and a few words with ``▁`` for the space, and single bytes for all else."""
    words = ["▁" + word for word in ("the", "a", "of", "picture", "answer", "yes", "no")]
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if merge not in merges:
                merges.append(merge)
                pieces.append(word[:end])
    tokenizer = Tokenizer(
        token_models.BPE(
            vocab={piece: at for at, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = token_decoders.Sequence(
        [
            token_decoders.Replace("▁", " "),
            token_decoders.ByteFallback(),
            token_decoders.Fuse(),
            token_decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        model_max_length=CONTEXT,
    )
