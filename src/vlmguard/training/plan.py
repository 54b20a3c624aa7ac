"""What a run would do and cost, without doing it: ``vlmguard train --dry-run``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmguard.training.recipe import Recipe
from vlmguard.training.run import Prepared, has_bf16, make_trainer, quiet_libraries


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
        prompt, completion: of the first risky example, as the model sees them.
        trained: the completion again, with the weight of each token.
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
    completion: str
    trained: tuple[tuple[str, float], ...]


def plan(prepared: Prepared) -> Plan:
    """Build the trainer, look at it, and stop."""
    recipe, data = prepared.recipe, prepared.data
    with quiet_libraries():
        trainer = make_trainer(prepared)
    model = trainer.model
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    everything = sum(weight.numel() for weight in model.parameters())
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
        completion=decode(completion.ids),
        trained=tuple(
            (decode([token]), weight)
            for token, weight in zip(completion.ids, completion.weights, strict=True)
        ),
    )


def _steps(recipe: Recipe, examples: int) -> int:
    optimizer = recipe.optimizer
    if optimizer.max_steps is not None:
        return optimizer.max_steps
    batches = math.ceil(examples / optimizer.batch_size)
    return math.ceil(optimizer.epochs * math.ceil(batches / optimizer.accumulation))


def _memory(prepared: Prepared, parameters: int, trainable: int) -> float:
    """A rough upper bound, in GB.

    Weights; for each trainable one a gradient and two moments of AdamW in fp32; activations of the
    largest batch: about 34 numbers a token, layer and hidden unit (Korthikanti et al. 2022,
    arXiv 2205.05198, without attention maps, which fused attention does not keep), or 2 with
    checkpointing; logits in fp32 with their gradient where something is trained.
    """
    recipe, data = prepared.recipe, prepared.data
    text = prepared.base.model.config.get_text_config()
    size = 0.5 if recipe.tuning == "qlora" else 2 if has_bf16() and recipe.tuning == "lora" else 4
    batch = sorted((one.length for one in data.train), reverse=True)[: recipe.optimizer.batch_size]
    tokens = batch[0] * len(batch)
    trained = max(len(one.completion.ids) for one in data.train) * len(batch)
    per_unit = 2 if recipe.optimizer.gradient_checkpointing else 34
    bytes_ = (
        parameters * size
        + trainable * 12
        + tokens * text.num_hidden_layers * text.hidden_size * per_unit
        + trained * text.vocab_size * 4 * 3
    )
    return float(bytes_ / 1e9)
