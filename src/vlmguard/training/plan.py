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


def _memory(prepared: Prepared, parameters: int, trainable: int) -> float:
    """A rough upper bound, in GB.

    Weights; for each trainable one a gradient and two moments of AdamW in fp32; activations of the
    largest batch: about 34 bytes a token, layer and hidden unit in 16 bits (Korthikanti et al.
    2022, arXiv 2205.05198; attention maps not counted, which fused attention does not keep), or 2
    with checkpointing; and logits in fp32, twice, where something is trained.
    """
    recipe, data = prepared.recipe, prepared.data
    text = prepared.base.model.config.get_text_config()
    bf16 = computes_in_bf16(recipe)
    frozen = {"qlora": 0.5, "lora": 2.0 if bf16 else 4.0, "full": 0.0}[recipe.tuning]
    batch = sorted((one.length for one in data.train), reverse=True)[: recipe.optimizer.batch_size]
    tokens = batch[0] * len(batch)
    trained = max(len(one.completion.ids) for one in data.train) * len(batch)
    per_unit = (2 if recipe.optimizer.gradient_checkpointing else 34) * (1 if bf16 else 2)
    return (
        float(
            (parameters - trainable) * frozen
            + trainable * 16
            + tokens * text.num_hidden_layers * text.hidden_size * per_unit
            + trained * text.vocab_size * 8
        )
        / 1e9
    )
