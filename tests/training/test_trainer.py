"""The trainer: its loss, its figures, and that it learns from text and from pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import cross_entropy

from tests.training import common
from tests.training.conftest import LIBRARIES_OWN_WARNINGS, Folders
from vlmguard.errors import ConfigError
from vlmguard.training import run
from vlmguard.training.arguments import lora
from vlmguard.training.base_model import load_base
from vlmguard.training.batches import IGNORED
from vlmguard.training.trainer import VerdictTrainer, shared_length

pytestmark = LIBRARIES_OWN_WARNINGS


def trainer_for(model: Path, folder: Path, changes: dict[str, Any]) -> VerdictTrainer:
    """A trainer on text records, or on pictures for a model that sees."""
    sighted = model.name.rstrip("0123456789") != "llama"
    records = common.picture_records(folder) if sighted else common.text_records()
    data = common.write(folder, records)
    return run.make_trainer(run.prepare(common.recipe(model, data, folder / "out", changes)))


def test_the_loss_is_the_weighted_mean_of_token_losses(folder: Folders, tmp_path: Path) -> None:
    """It equals what full logits and a plain formula give, though logits are computed for few."""
    trainer = trainer_for(folder("llama"), tmp_path, {})
    batch = next(iter(trainer.get_train_dataloader()))
    model: Any = trainer.model
    shown = {key: batch[key] for key in ("input_ids", "attention_mask")}
    full = model(**shown).logits[:, :-1]
    targets, weights = batch["labels"][:, 1:], batch["weights"][:, 1:]
    losses = cross_entropy(full.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    expected = (losses * weights).sum() / weights.sum()
    assert torch.allclose(trainer.compute_loss(model, dict(batch)), expected, atol=1e-5)
    assert {10.0, 1.0} <= set(weights.unique().tolist())


def test_a_shared_beginning_computed_once_changes_nothing(
    folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and every gradient are those of rows that each compute it themselves."""
    trainer = trainer_for(folder("llama"), tmp_path, {"optimizer.batch_size": 4})
    batch = next(iter(trainer.get_train_dataloader()))
    trained = batch["labels"][:, 1:] != IGNORED
    assert shared_length(batch["input_ids"], trained) > 10  # the system prompt
    model: Any = trainer.model
    results = []
    for share in (True, False):
        monkeypatch.setattr(VerdictTrainer, "_may_share", lambda *_, share=share: share)
        model.zero_grad()
        loss = trainer.compute_loss(model, dict(batch))
        torch.autograd.backward(loss)
        gradients = [w.grad.clone() for w in model.parameters() if w.requires_grad]
        results.append((loss.detach(), gradients))
    (loss, gradients), (plain_loss, plain_gradients) = results
    assert torch.allclose(loss, plain_loss, atol=1e-5)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    for one, other in zip(gradients, plain_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_rows_share_ends_before_anything_that_is_trained() -> None:
    """And before the first token that differs; at least one token stays for each row."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    never = torch.zeros(2, 3, dtype=torch.bool)
    early = torch.tensor([[False, True, False], [False, False, False]])
    assert shared_length(ids, never) == 3
    assert shared_length(ids, early) == 1
    assert shared_length(ids[:1], never[:1]) == 3
    assert shared_length(torch.tensor([[1, 2], [3, 2]]), never[:, :1]) == 0


def test_a_step_does_not_depend_on_how_it_is_cut(folder: Folders, tmp_path: Path) -> None:
    """Four examples in one batch or in four that accumulate: the same weights after the step."""
    after = []
    for size in (4, 1):
        changes = {
            "optimizer.batch_size": size,
            "optimizer.accumulation": 4 // size,
            "optimizer.max_steps": 2,
            "optimizer.warmup": 0.0,
            "data.limit": 4,
        }
        trainer = trainer_for(folder("llama"), tmp_path / str(size), changes)
        trainer.train()
        assert trainer.model is not None
        after.append([w for w in trainer.model.parameters() if w.requires_grad])
    for one, other in zip(*after, strict=True):
        assert torch.allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_vl"])
def test_models_that_see_learn_from_pictures(folder: Folders, tmp_path: Path, family: str) -> None:
    """A few steps on pictures plus text lower the loss, and the vision tower stays as it was."""
    trainer = trainer_for(folder(family), tmp_path, {"optimizer.max_steps": 8})
    model: Any = trainer.model
    frozen = {
        name: w.clone()
        for name, w in model.named_parameters()
        if "vision" in name or "visual" in name
    }
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    assert frozen
    for name, weight in model.named_parameters():
        assert "lora_" not in name or ("vision" not in name and "visual" not in name)
        assert name not in frozen or torch.equal(weight, frozen[name])


def test_gradient_checkpointing_changes_nothing_but_memory(folder: Folders, tmp_path: Path) -> None:
    """The weights after two steps are the same with and without."""
    after = []
    for checkpointing in (False, True):
        changes = {"optimizer.max_steps": 2, "optimizer.gradient_checkpointing": checkpointing}
        trainer = trainer_for(folder("llama"), tmp_path / str(checkpointing), changes)
        trainer.train()
        assert trainer.model is not None
        after.append([w for w in trainer.model.parameters() if w.requires_grad])
    for one, other in zip(*after, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("model", ["llama", "llava", "idefics3", "qwen2_vl"])
def test_the_last_layers_alone_can_be_adapted(folder: Folders, model: str) -> None:
    """Blocks before them stay free of an adapter; more blocks than there are is an error."""
    recipe = common.recipe(folder(model), Path("x"), Path("y"), {"lora.last_layers": 1})
    base = load_base(recipe).model
    count = base.config.get_text_config().num_hidden_layers
    tuned = get_peft_model(base, lora(recipe, base))
    names = {name for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert len(names) == 7 * 2
    assert all(f"layers.{count - 1}." in name and "vision" not in name for name in names)
    deeper = recipe.model_copy(
        update={"lora": recipe.lora.model_copy(update={"last_layers": count + 1})}
    )
    with pytest.raises(ConfigError, match=f"last_layers: {count + 1} is more than the {count} of"):
        lora(deeper, base)


def test_layers_that_are_not_there_are_named(folder: Folders) -> None:
    """A target that the language model lacks is an error with its name."""
    recipe = common.recipe(
        folder("llava"), Path("x"), Path("y"), {"lora.targets": ["q_proj", "qkv"]}
    )
    with pytest.raises(ConfigError, match="qkv"):
        lora(recipe, load_base(recipe).model)
