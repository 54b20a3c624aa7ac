"""TRL's SFTTrainer with a loss that weighs the verdict, and verdicts measured while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EvalPrediction
from trl import SFTTrainer

from vlmguard.training.batches import IGNORED
from vlmguard.training.examples import VerdictTokens
from vlmguard.training.figures import Scores, verdict_figures

_INPUTS = ("labels", "weights", "verdicts")


class VerdictTrainer(SFTTrainer):
    """Trains on the batches of `vlmguard.training.batches.Collator`.

    Logits are computed only where something is trained. On a vocabulary of 49,152 and prompts
    three times as long as completions that is most of the memory and a third of the time.

    The loss of a step is the sum of all weighted token losses over the sum of all weights, over
    all devices and accumulated batches, so it does not depend on how a step is cut into batches.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, verdicts: VerdictTokens, **options: Any) -> None:
        self._verdicts = verdicts
        self.scores: Scores | None = None
        super().__init__(compute_metrics=self._figures, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # the signature of Trainer
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The weighted loss; ``num_items_in_batch`` is the sum of weights of the whole step."""
        logits, targets, weights = self._logits(model, inputs)
        losses = F.cross_entropy(logits, targets, reduction="none") * weights
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / total.clamp(min=1e-9)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients
        return (loss, logits) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,  # noqa: FBT001  # the signature of Trainer
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """For B examples: B x 3 of margin, loss and weight, and B verdicts."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, targets, weights = self._logits(model, inputs)
        losses = F.cross_entropy(logits, targets, reduction="none") * weights
        labels = inputs["labels"][:, 1:]
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        places, risky = inputs["verdicts"].unbind(dim=1)
        at = (columns == places[rows] - 1).nonzero().squeeze(1)
        margins = logits[at, self._verdicts.risky] - logits[at, self._verdicts.safe]
        sums = torch.zeros(2, len(labels), device=logits.device)
        sums[0].index_add_(0, rows, losses)
        sums[1].index_add_(0, rows, weights)
        return None, torch.stack([margins, *sums], dim=1), risky

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """For the N trained tokens: N x vocabulary logits (fp32), N targets, N weights."""
        trained = inputs["labels"][:, 1:] != IGNORED
        given = {key: value for key, value in inputs.items() if key not in _INPUTS}
        with _head_sees_only(self.model, trained):
            logits = model(**given, use_cache=False).logits
        return logits.float(), inputs["labels"][:, 1:][trained], inputs["weights"][:, 1:][trained]

    def _figures(self, prediction: EvalPrediction) -> dict[str, float | None]:
        values = np.asarray(prediction.predictions)
        self.scores = Scores(margins=values[:, 0], risky=np.asarray(prediction.label_ids))
        loss = float(values[:, 1].sum() / values[:, 2].sum())
        return {"loss": loss, **verdict_figures(self.scores)}

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Tensor]], device: torch.device
    ) -> Tensor | None:
        if not batch_samples:
            return None
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row"]

    def _send_telemetry(self) -> None:
        """TRL reports its use over the network. A guard does not."""


@contextmanager
def _head_sees_only(model: Any, trained: Tensor) -> Iterator[None]:
    """Have the output layer see only the positions whose next token is trained.

    Args:
        trained: B x (T-1), true where the next token is trained.
    """

    def select(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = arguments
        return (hidden[:, :-1][trained], *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
