"""From examples to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmguard.engines.transformers_inputs import ChatFormat
from vlmguard.errors import ConfigError
from vlmguard.training.examples import Example

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Pads on the right.

    Besides what the model takes, a batch has, for B examples of at most T tokens::

        labels    B x T  the ids to predict, `IGNORED` where nothing is trained
        weights   B x T  how much each counts in the loss, 0 where nothing is trained
        verdicts  B x 2  position of the verdict's token, and 1 for risky

    Attributes:
        examples: all of them; a row names one by its index.
        format: of the model, for pictures.
        pad: id of the padding token.
        max_pixels: bigger pictures are scaled down, as in serving.
    """

    examples: Sequence[Example]
    format: ChatFormat
    pad: int
    max_pixels: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of some rows of `rows_of`."""
        examples = [self.examples[row["row"]] for row in rows]
        prompts = [self._prompt(example) for example in examples]
        batch = join(prompts, [example.completion.ids for example in examples], pad=self.pad)
        ids = batch["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        weights = torch.zeros(ids.shape)
        verdicts = torch.zeros(len(examples), 2, dtype=torch.long)
        for at, (prompt, example) in enumerate(zip(prompts, examples, strict=True)):
            start = prompt["input_ids"].shape[1]
            end = start + len(example.completion.ids)
            weights[at, start:end] = torch.tensor(example.completion.weights)
            verdicts[at, 0] = start + example.completion.verdict
            verdicts[at, 1] = int(example.risky)
        trained = weights > 0
        labels[trained] = ids[trained]
        return {**batch, "labels": labels, "weights": weights, "verdicts": verdicts}

    def _prompt(self, example: Example) -> dict[str, Tensor]:
        if example.pictures:
            return self.format.encode(example.chat(), max_pixels=self.max_pixels)
        ids = torch.tensor([example.prompt_ids])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rows_of(examples: Sequence[Example], *, offset: int = 0) -> dict[str, list[int]]:
    """Columns of a data set that names the examples: their index and their length."""
    return {
        "row": list(range(offset, offset + len(examples))),
        "length": [example.length for example in examples],
    }


def join(
    prompts: Sequence[Mapping[str, Tensor]], completions: Sequence[Sequence[int]], *, pad: int
) -> dict[str, Tensor]:
    """One batch out of prompts that were encoded alone, each followed by its completion.

    Tensors of one number a token are continued and padded. Pictures' tensors are laid one after
    the other; where their shapes differ (tiles, patches), the smaller ones are filled with zeros,
    as the models' own processors do.

    Raises:
        ConfigError: this model's pictures cannot be batched with text-only records.
    """
    width = max(
        prompt["input_ids"].shape[1] + len(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    )
    batch: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for prompt in prompts for key in prompt):
        if _is_per_token(key, prompts):
            batch[key] = torch.stack(
                [
                    _continued(key, prompt, completion, width, pad)
                    for prompt, completion in zip(prompts, completions, strict=True)
                ]
            )
        else:
            batch[key] = _stacked(key, prompts)
    return batch


def _is_per_token(key: str, prompts: Sequence[Mapping[str, Tensor]]) -> bool:
    return all(
        prompt[key].shape == prompt["input_ids"].shape for prompt in prompts if key in prompt
    )


def _continued(
    key: str, prompt: Mapping[str, Tensor], completion: Sequence[int], width: int, pad: int
) -> Tensor:
    """One row: what the prompt has, what the completion adds, and padding."""
    start = prompt["input_ids"].shape[1]
    row = torch.full((width,), pad if key == "input_ids" else 0)
    if key in prompt:
        row[:start] = prompt[key][0]
    if key == "input_ids":
        row[start : start + len(completion)] = torch.tensor(completion)
    elif key == "attention_mask":
        row[start : start + len(completion)] = 1
    return row


def _stacked(key: str, prompts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    parts = [prompt.get(key) for prompt in prompts]
    some = next(part for part in parts if part is not None)
    if len({part.shape[1:] for part in parts if part is not None}) > 1 and some.dim() < 3:
        raise ConfigError(f"the model's {key} of different pictures cannot be put into one batch")
    # Idefics3 and SmolVLM number pictures within each record, so a record without any has a row
    # of its own, all zeros. All others number the pictures of the whole batch.
    if any("pixel_attention_mask" in prompt for prompt in prompts):
        parts = [some.new_zeros(some.shape) if part is None else part for part in parts]
    present = [part for part in parts if part is not None]
    sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in present), strict=True)]
    padded = []
    for part in present:
        whole = part.new_zeros((part.shape[0], *sizes))
        whole[tuple(slice(0, size) for size in part.shape)] = part
        padded.append(whole)
    return torch.cat(padded)
