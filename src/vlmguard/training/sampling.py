"""The order of examples: batches of like length, and steps that mix short with long.

A harmless completion is three tokens long, a risky one a hundred. Grouping by length alone makes
batches, and whole stretches of a run, of one verdict; the model then learns which stretch it is in
instead of what to say. So every optimizer step takes its batches from all lengths.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

_STEPS_AT_ONCE = 25


class MixedLengthSampler(Sampler[int]):
    """Yields indices so that consecutive batches of a step span the range of lengths.

    Args:
        lengths: tokens of each example.
        batch_size: examples of one forward pass.
        batches_per_step: forward passes of one optimizer step, over all devices.
        seed: with the epoch it decides the order, so that a resumed run sees the same.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, batches_per_step: int, seed: int
    ) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._batches_per_step = batches_per_step
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(self._seed * 1_000_003 + self._epoch)  # noqa: S311  # not a secret
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        whole = len(order) - len(order) % (self._batch_size * self._batches_per_step)
        steps: list[list[int]] = []
        chunk = self._batch_size * self._batches_per_step * _STEPS_AT_ONCE
        for start in range(0, whole, chunk):
            steps += self._steps(order[start : min(start + chunk, whole)])
        chance.shuffle(steps)
        for step in steps:
            yield from step
        yield from order[whole:]  # the last, smaller step

    def _steps(self, indices: list[int]) -> list[list[int]]:
        """Steps out of some examples: each takes every n-th of the batches in order of length."""
        indices = sorted(indices, key=lambda index: self._lengths[index])
        size = self._batch_size
        batches = [indices[at : at + size] for at in range(0, len(indices), size)]
        count = len(batches) // self._batches_per_step
        return [[index for batch in batches[at::count] for index in batch] for at in range(count)]
