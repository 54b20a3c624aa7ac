"""Tokens per second of `VerdictTrainer` against a bare PyTorch loop: same model, same batches.

The bare loop is what one would write by hand: forward through the body, logits where something is
trained, weighted loss, backward, clip, AdamW. Both run the same steps one after the other, several
times in turn, and the medians are compared, since other work on the machine disturbs both alike.

::

    python benchmarks/train_throughput.py --steps 4 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, set_seed

from vlmguard.training import load_recipe
from vlmguard.training.arguments import has_bf16
from vlmguard.training.batches import IGNORED
from vlmguard.training.run import make_trainer, prepare, quiet_libraries
from vlmguard.training.trainer import VerdictTrainer

RECIPE = Path(__file__).parent.parent / "recipes" / "smollm2-cpu.yaml"


class Clock(TrainerCallback):
    """Seconds of each step of the trainer, data loading included, start and end excluded."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._start)
        self._start = now


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        recipe = load_recipe(
            RECIPE,
            [
                f"output={folder}",
                f"optimizer.batch_size={options.batch_size}",
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
        print(f"{len(batches)} batches, {tokens} tokens, bf16 {has_bf16()}")
        bare, ours = [], []
        bare_loop(trainer, batches[:1])  # warm up
        for _ in range(options.rounds):
            bare.append(bare_loop(trainer, batches))
            clock.seconds.clear()
            set_seed(0)
            trainer.train()
            ours.append(sum(clock.seconds))
            print(f"bare {tokens / bare[-1]:.0f}, trainer {tokens / ours[-1]:.0f} tokens/s")
    fast, slow = tokens / statistics.median(bare), tokens / statistics.median(ours)
    print(f"median: bare {fast:.0f}, trainer {slow:.0f} tokens/s; ratio {slow / fast:.2f}")


def bare_loop(trainer: VerdictTrainer, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds for these batches."""
    model: Any = trainer.model
    model.train()
    body, head = model.get_base_model().model, model.get_output_embeddings()
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    start = time.perf_counter()
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
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
