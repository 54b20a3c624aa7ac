"""The recipe in the words of TRL and PEFT."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers.integrations import integration_utils
from trl.trainer.sft_config import SFTConfig

from vlmguard.errors import ConfigError
from vlmguard.training.recipe import Recipe


def arguments(recipe: Recipe) -> SFTConfig:
    """What the trainer is told.

    Raises:
        ConfigError: ``report_to`` names something that is not installed.
    """
    optimizer = recipe.optimizer
    return SFTConfig(
        output_dir=str(recipe.output / "checkpoints"),
        per_device_train_batch_size=optimizer.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=optimizer.accumulation,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type=optimizer.schedule,
        warmup_steps=optimizer.warmup,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.grad_clip,
        num_train_epochs=optimizer.epochs,
        max_steps=optimizer.max_steps or -1,
        bf16=computes_in_bf16(recipe),
        gradient_checkpointing=optimizer.gradient_checkpointing,
        # A batch without pictures leaves a vision tower that is tuned without gradients.
        ddp_find_unused_parameters=recipe.tuning == "full",
        use_cpu=not torch.cuda.is_available(),
        seed=optimizer.seed,
        data_seed=optimizer.seed,
        max_length=None,  # nothing is ever cut; records that are too long were left out
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=recipe.data.workers,
        eval_strategy="no",  # `EvaluateEachEpoch` asks for it
        save_strategy="steps",
        save_steps=recipe.evaluation.save_steps,
        save_total_limit=2,
        logging_steps=10,
        report_to=_reporters(recipe),
        disable_tqdm=True,
    )


def lora(recipe: Recipe, model: Any) -> LoraConfig:
    """An adapter on the layers of the language model alone.

    The vision tower of a vision-language model has layers of the same names. It stays as it is:
    servers such as vLLM take adapters of language layers only, and it needs far less to be learned.

    Raises:
        ConfigError: the language model has no such layers.
    """
    wanted = recipe.lora
    inside = _name_of(model, model.get_decoder())
    names = [
        name
        for name, module in model.named_modules()
        if name.startswith(inside) and name.rpartition(".")[2] in wanted.targets
    ]
    missing = set(wanted.targets) - {name.rpartition(".")[2] for name in names}
    if missing:
        raise ConfigError(
            f"lora.targets: the language model of {recipe.model} has no layers named "
            f"{', '.join(sorted(missing))}"
        )
    layers = "|".join(map(re.escape, wanted.targets))
    pattern = f"{re.escape(inside)}{_blocks(recipe, model)}.*\\.({layers})"
    return LoraConfig(
        r=wanted.r,
        lora_alpha=wanted.alpha,
        lora_dropout=wanted.dropout,
        target_modules=pattern,
        task_type="CAUSAL_LM",
    )


def adapter_to_go_on_from(recipe: Recipe, model: Any) -> PeftModel | None:
    """The adapter of ``lora.start_from`` on the model, ready to be trained on.

    Raises:
        ConfigError: there is none, or it has another shape than the recipe says.
    """
    folder, wanted = recipe.lora.start_from, recipe.lora
    if folder is None or recipe.tuning == "full":
        return None
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"lora.start_from: there is no PEFT adapter in {folder}")
    config = LoraConfig.from_pretrained(str(folder))
    shape = lora(recipe, model)
    for name in ("r", "lora_alpha", "target_modules"):
        if getattr(config, name) != getattr(shape, name):
            raise ConfigError(
                f"lora.start_from: the adapter in {folder} has {name}={getattr(config, name)}, "
                f"the recipe {getattr(shape, name)}"
            )
    config.lora_dropout = wanted.dropout
    return PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=True)


def _blocks(recipe: Recipe, model: Any) -> str:
    """A pattern for the blocks of the language model that get an adapter; empty for all."""
    last = recipe.lora.last_layers
    if last is None:
        return ""
    count = model.config.get_text_config().num_hidden_layers
    if last > count:
        raise ConfigError(f"lora.last_layers: {last} is more than the {count} of {recipe.model}")
    return rf"\.layers\.({'|'.join(map(str, range(count - last, count)))})\."


def computes_in_bf16(recipe: Recipe) -> bool:
    """Whether matrices are multiplied in bfloat16, by the recipe and by what the machine has."""
    precision = recipe.optimizer.precision
    return precision == "bf16" or (precision == "auto" and has_bf16())


def has_bf16() -> bool:
    """Whether this machine computes in bfloat16 fast enough for it to pay."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for it on CPUs.
    return any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _name_of(model: Any, wanted: Any) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _reporters(recipe: Recipe) -> list[str]:
    there = integration_utils.get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in recipe.evaluation.report_to:
        if name not in there:
            raise ConfigError(
                f"evaluation.report_to: {name} is not installed; pip install {name}, or leave it "
                "out: curves.csv and curves.png are always written"
            )
    return list(recipe.evaluation.report_to)
