"""Tokens per second of `VerdictTrainer` against a bare PyTorch loop: same model, same batches.

The bare loop is what one would write by hand: forward through the body, logits where something is
trained, weighted loss, backward, clip, AdamW. Both run the same steps in turn, several times, and
the medians are compared. Where other programs share the machine, the time on the clock says little;
so the ratio is also given for processor time, which with one thread is what the work itself costs::

    OMP_NUM_THREADS=1 python benchmarks/train_throughput.py --steps 2 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from vlmguard.training import load_recipe
from vlmguard.training.arguments import has_bf16
from vlmguard.training.batches import IGNORED
from vlmguard.training.run import make_trainer, prepare, quiet_libraries
from vlmguard.training.trainer import VerdictTrainer

RECIPE = Path(__file__).parent.parent / "recipes" / "smollm2-cpu.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds on the clock and of the processor."""

    wall: float
    processor: float


class Clock(TrainerCallback):
    """What the trainer's steps cost, data loading included, start and end excluded."""

    def __init__(self) -> None:
        self._wall = self._processor = 0.0
        self.cost = Cost(wall=0.0, processor=0.0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.cost = Cost(
            wall=time.perf_counter() - self._wall,
            processor=time.process_time() - self._processor,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        recipe = load_recipe(
            RECIPE,
            [
                f"output={folder}",
                f"optimizer.batch_size={options.batch_size}",
                "optimizer.accumulation=1",
                f"optimizer.max_steps={options.steps}",
                f"data.limit={options.steps * options.batch_size}",
            ],
        )
        trainer = make_trainer(prepare(recipe))
        trainer.args.save_strategy = "no"
        clock = Clock()
        trainer.add_callback(clock)
        batches = list(trainer.get_train_dataloader())
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        threads = torch.get_num_threads()
        print(f"{len(batches)} batches, {tokens} tokens, bf16 {has_bf16()}, {threads} threads")
        bare_loop(trainer, batches[:1])  # warm up
        bare, ours = [], []
        for _ in range(options.rounds):
            bare.append(bare_loop(trainer, batches))
            trainer.train()
            ours.append(clock.cost)
            print(
                f"bare {tokens / bare[-1].wall:.0f}, trainer {tokens / ours[-1].wall:.0f} tokens/s"
            )
    for kind in ("wall", "processor"):
        fast, slow = (
            tokens / statistics.median(getattr(cost, kind) for cost in costs)
            for costs in (bare, ours)
        )
        print(f"{kind}: bare {fast:.0f}, trainer {slow:.0f} tokens/s; ratio {slow / fast:.2f}")


def bare_loop(trainer: VerdictTrainer, batches: list[dict[str, torch.Tensor]]) -> Cost:
    """What these batches cost."""
    model: Any = trainer.model
    model.train()
    body, head = model.get_base_model().model, model.get_output_embeddings()
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    wall, processor = time.perf_counter(), time.process_time()
    for batch in batches:
        trained = batch["labels"][:, 1:] != IGNORED
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            hidden = body(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).last_hidden_state
            logits = head(hidden[:, :-1][trained])
        weights = batch["weights"][:, 1:][trained]
        losses = cross_entropy(logits.float(), batch["labels"][:, 1:][trained], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return Cost(wall=time.perf_counter() - wall, processor=time.process_time() - processor)


if __name__ == "__main__":
    main()
