"""The order of examples: no stretch of a run may show one verdict only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlmguard.training.sampling import MixedLengthSampler


@given(
    count=st.integers(0, 400),
    batch=st.integers(1, 8),
    per_step=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_example_comes_once_an_epoch(
    count: int, batch: int, per_step: int, seed: int
) -> None:
    """Nothing is dropped, nothing doubled."""
    lengths = [(index * 37) % 101 for index in range(count)]
    sampler = MixedLengthSampler(lengths, batch_size=batch, batches_per_step=per_step, seed=seed)
    assert sorted(sampler) == list(range(count)) == list(range(len(sampler)))


def test_every_step_sees_short_and_long_examples() -> None:
    """Harmless completions are short, risky ones long: each step has both."""
    lengths = [50] * 720 + [200] * 480
    sampler = MixedLengthSampler(lengths, batch_size=4, batches_per_step=3, seed=0)
    order = list(sampler)
    steps = [order[at : at + 12] for at in range(0, 1200, 12)]
    mixed = [0 < sum(lengths[index] == 200 for index in step) < 12 for step in steps]
    assert all(mixed)


def test_batches_are_of_like_length() -> None:
    """Padding costs time."""
    lengths = [(index * 7919) % 300 for index in range(2000)]
    order = list(MixedLengthSampler(lengths, batch_size=8, batches_per_step=2, seed=0))
    batches = [order[at : at + 8] for at in range(0, 2000, 8)]
    padded = sum(8 * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_the_epoch_and_the_seed_decide_the_order() -> None:
    """A resumed run sees what the uninterrupted one would have."""
    sampler = MixedLengthSampler(range(100), batch_size=4, batches_per_step=2, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    other = MixedLengthSampler(range(100), batch_size=4, batches_per_step=2, seed=2)
    assert list(other) != first
