"""TRL's SFTTrainer with a loss that weighs the verdict, and verdicts measured while it trains."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, EvalPrediction
from trl.trainer.sft_trainer import SFTTrainer

from vlmguard.errors import ConfigError
from vlmguard.training.batches import IGNORED
from vlmguard.training.examples import VerdictTokens
from vlmguard.training.figures import Scores, verdict_figures
from vlmguard.training.sampling import MixedLengthSampler

_NOT_FOR_THE_MODEL = ("labels", "weights", "verdicts")


class VerdictTrainer(SFTTrainer):
    """Trains on the batches of `vlmguard.training.batches.Collator`.

    Logits are computed only where something is trained: with a vocabulary of 49,152 and prompts
    longer than completions, that is most of the memory. (TRL's own fused head does the same on
    GPUs; on CPUs it computes every position, and nowhere does it give the logits.)

    Every request begins with the same system prompt, a third of a short example: text-only batches
    compute it once, for all their rows.

    The loss of a step is the sum of all weighted token losses over the sum of all weights, across
    devices and accumulated batches, so it does not depend on how a step is cut into batches.

    Attributes:
        scores: of the last evaluation.
    """

    loss_is_scaled_for_ga: Any = True

    def __init__(self, *, verdicts: VerdictTokens, **options: Any) -> None:
        self._verdicts = verdicts
        self.scores: Scores | None = None
        super().__init__(compute_metrics=self._figures, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  (the signature is the Trainer's)
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted loss; ``num_items_in_batch`` is the sum of weights of the whole step."""
        logits, targets, weights = self._logits(model, inputs)
        losses = cross_entropy(logits, targets, reduction="none") * weights
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / total
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        return (loss, logits) if return_outputs else loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Measure; draws no random numbers, so that a resumed run goes on as it would have."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            figures: dict[str, float] = super().evaluate(*arguments, **options)
        return figures

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002, FBT001  (the signature is the Trainer's)
        ignore_keys: list[str] | None = None,  # noqa: ARG002  (likewise)
    ) -> tuple[None, Tensor, Tensor]:
        """For B examples: B x 3 of margin, summed loss and summed weight; and B verdicts."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, targets, weights = self._logits(model, inputs)
        losses = cross_entropy(logits, targets, reduction="none") * weights
        labels = inputs["labels"][:, 1:]
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        places, risky = inputs["verdicts"].unbind(dim=1)
        decides = columns == places[rows] - 1
        margins = logits[decides, self._verdicts.risky] - logits[decides, self._verdicts.safe]
        sums = torch.zeros(2, len(labels), device=logits.device)
        sums[0].index_add_(0, rows, losses)
        sums[1].index_add_(0, rows, weights)
        return None, torch.stack([margins, *sums], dim=1), risky

    def _logits(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """For the N trained tokens: N x vocabulary logits (fp32), N targets, N weights."""
        trained = inputs["labels"][:, 1:] != IGNORED
        given = {key: value for key, value in inputs.items() if key not in _NOT_FOR_THE_MODEL}
        head = self.accelerator.unwrap_model(self.model)
        shared = shared_length(given["input_ids"], trained) if self._may_share(given) else 0
        options: dict[str, Any] = {"use_cache": False}
        if shared:
            cache = DynamicCache(config=head.config)
            options = {"use_cache": True, _cache_argument(head): cache}
            with _head_sees_only(head, trained[:1, : shared - 1] & False):
                model(input_ids=given["input_ids"][:1, :shared], **options)
            cache.batch_repeat_interleave(len(trained))
            given["input_ids"] = given["input_ids"][:, shared:]
        with _head_sees_only(head, trained[:, shared:]):
            logits = model(**given, **options).logits
        return logits.float(), inputs["labels"][:, 1:][trained], inputs["weights"][:, 1:][trained]

    def _may_share(self, given: dict[str, Any]) -> bool:
        """Whether a beginning that all rows share may be computed once.

        Not with pictures (their positions are the model's own business), not under DDP, FSDP or
        DeepSpeed (which expect one forward pass a step), not with checkpointing (which keeps no
        cache).
        """
        return (
            set(given) == {"input_ids", "attention_mask"}
            and len(given["input_ids"]) > 1
            and self.accelerator.num_processes == 1
            and not self.args.gradient_checkpointing
            and not self.is_fsdp_enabled
            and not self.is_deepspeed_enabled
        )

    def _figures(self, prediction: EvalPrediction) -> dict[str, float | None]:
        values = np.asarray(prediction.predictions)
        if not np.isfinite(values).all():
            raise ConfigError(
                "the model computes numbers that are none (NaN): training diverged. Lower "
                "optimizer.learning_rate, or set optimizer.precision: fp32"
            )
        self.scores = Scores(margins=values[:, 0], risky=np.asarray(prediction.label_ids))
        loss = float(values[:, 1].sum() / values[:, 2].sum())
        return {"loss": loss, **verdict_figures(self.scores)}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if not batch_samples:
            return None
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> MixedLengthSampler:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        return MixedLengthSampler(
            rows["length"],
            batch_size=self.args.per_device_train_batch_size,
            batches_per_step=self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.seed,
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["row"]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL's would lie in every checkpoint; the adapter gets one of its own."""

    def _send_telemetry(self) -> None:
        """TRL reports its use over the network. A guard does not."""


def _cache_argument(model: Any) -> str:
    """What this version of transformers, or this model's class, calls it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = inspect.signature(type(inner).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def shared_length(ids: Tensor, trained: Tensor) -> int:
    """How many tokens all rows begin with, of those before the first that is trained.

    Args:
        ids: B x T.
        trained: B x (T-1), where the next token is trained.
    """
    same = (ids == ids[:1]).all(dim=0)[:-1] & ~trained.any(dim=0)
    return int(same.long().cumprod(dim=0).sum())


@contextmanager
def _head_sees_only(model: Any, trained: Tensor) -> Iterator[None]:
    """Have the output layer of ``model`` see only the positions whose next token is trained.

    ``trained`` is B x (T-1).
    """

    def select(_: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
        return arguments[0][:, :-1][trained]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
