"""What a run would do and cost, without doing it: ``vlmguard train --dry-run``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peft import get_peft_model

from vlmguard.training.arguments import computes_in_bf16, lora
from vlmguard.training.examples import Example
from vlmguard.training.recipe import Recipe
from vlmguard.training.run import Prepared, quiet_libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run before it is run.

    Attributes:
        parameters, trainable: numbers of weights.
        tokens: of one epoch.
        longest: tokens of the longest example.
        steps: of the optimizer, in all.
        records: split → examples.
        left_out: reason → records.
        memory_gb: estimated peak (weights, gradients, optimizer, activations, logits), on one
            device.
        prompt: of the first risky example, as the model sees it.
        completion: the text and the weight of each of its tokens.
    """

    parameters: int
    trainable: int
    tokens: int
    longest: int
    steps: int
    records: dict[str, int]
    left_out: dict[str, int]
    memory_gb: float
    prompt: str
    completion: tuple[tuple[str, float], ...]


def plan(prepared: Prepared) -> Plan:
    """Attach the adapter, look at everything, and stop. The model cannot be used afterwards."""
    recipe, data = prepared.recipe, prepared.data
    model: Any = prepared.base.model
    if recipe.tuning != "full":
        with quiet_libraries():
            model = get_peft_model(model, lora(recipe, model))
    weights = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    everything = sum(count for count, _ in weights)
    trainable = sum(count for count, trained in weights if trained)
    example = next(one for one in data.train if one.risky)
    decode = prepared.base.tokenizer.decode
    completion = example.completion
    return Plan(
        parameters=everything,
        trainable=trainable,
        tokens=data.tokens,
        longest=max(one.length for one in data.train),
        steps=_steps(recipe, len(data.train)),
        records=data.facts.records,
        left_out=data.facts.dropped,
        memory_gb=_memory(prepared, everything, trainable),
        prompt=decode(example.prompt_ids),
        completion=tuple(zip(_pieces(decode, example), completion.weights, strict=True)),
    )


def _pieces(decode: Callable[[Sequence[int]], str], example: Example) -> list[str]:
    """The text of each token of the completion; decoded alone, some would lose their space."""
    ids = (*example.prompt_ids, *example.completion.ids)
    start = len(example.prompt_ids)
    texts = [decode(ids[:end]) for end in range(start, len(ids) + 1)]
    return [longer[len(text) :] for text, longer in pairwise(texts)]


def _steps(recipe: Recipe, examples: int) -> int:
    optimizer = recipe.optimizer
    if optimizer.max_steps is not None:
        return optimizer.max_steps
    batches = math.ceil(examples / optimizer.batch_size)
    return math.ceil(optimizer.epochs * math.ceil(batches / optimizer.accumulation))


_LIBRARIES_GB = 1.0
_ACTIVATIONS = 90
"""Bytes kept for the backward pass a token, layer and hidden unit, with a LoRA on every projection
under bf16 autocast: measured as 84 to 92 on SmolLM2-135M with `torch.autograd.graph`'s hooks."""
_LAYER_INPUT = 4  # all that checkpointing keeps of a layer


def _memory(prepared: Prepared, parameters: int, trainable: int) -> float:
    """A rough estimate of the peak on one device, in GB; of the vision tower only its weights.

    Weights; for each trainable one a gradient and two moments of AdamW in fp32; what the backward
    pass needs of the longest batch; logits and their gradient where something is trained.
    """
    recipe, data = prepared.recipe, prepared.data
    text = prepared.base.model.config.get_text_config()
    bf16 = computes_in_bf16(recipe)
    frozen = {"qlora": 0.5, "lora": 2.0 if bf16 else 4.0, "full": 0.0}[recipe.tuning]
    longest = sorted(data.train, key=lambda one: one.length)[-recipe.optimizer.batch_size :]
    units = longest[-1].length * len(longest) * text.hidden_size
    trained = max(len(one.completion.ids) for one in longest) * len(longest)
    layer = _ACTIVATIONS * (1.0 if bf16 else 1.6)
    kept = layer * text.num_hidden_layers
    if recipe.optimizer.gradient_checkpointing:
        kept = _LAYER_INPUT * text.num_hidden_layers + layer
    needed = (parameters - trainable) * frozen + trainable * 16
    needed += units * kept + trained * text.vocab_size * 12
    return float(needed / 1e9) + _LIBRARIES_GB
