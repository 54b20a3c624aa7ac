"""A training run, from the recipe to the adapter.

::

    OUT/recipe.yaml        what was run
    OUT/left_out.jsonl     records that were not trained on, and why
    OUT/checkpoints/       to resume from
    OUT/best/              the weights with the best figure so far, and its scores
    OUT/curves.csv, .png   how it went
    OUT/adapter/           what is shipped: adapter, vlmguard.json, model card
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig

from vlmguard.errors import ConfigError
from vlmguard.models.notices import say
from vlmguard.perception import DEFAULT_DETECTORS, Perceiver
from vlmguard.prompts import Prompt, load_prompt
from vlmguard.training.base_model import BaseModel, load_base
from vlmguard.training.batches import Collator, rows_of
from vlmguard.training.dataset import LeftOut, TrainingData, load_data
from vlmguard.training.examples import Renderer
from vlmguard.training.export import export
from vlmguard.training.figures import Scores, verdict_figures
from vlmguard.training.materials import ExampleMaker
from vlmguard.training.progress import Best, Curves, EvaluateEachEpoch
from vlmguard.training.recipe import Recipe
from vlmguard.training.trainer import VerdictTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a run needs, loaded.

    Attributes:
        recipe: what is run.
        prompt: the system prompt.
        base: the model.
        renderer: what made the examples.
        data: the examples.
    """

    recipe: Recipe
    prompt: Prompt
    base: BaseModel
    renderer: Renderer
    data: TrainingData


def prepare(recipe: Recipe) -> Prepared:
    """Load the model and the data.

    Raises:
        ConfigError, DataError, InputError: what is wrong, and where.
    """
    prompt = load_prompt("vlmguard.rewriting", recipe.prompt)
    base = load_base(recipe)
    renderer = Renderer(
        base,
        layout=recipe.layout,
        prompt=prompt,
        verdict_weight=recipe.loss.verdict_weight,
        prefix_weight=recipe.loss.prefix_weight,
    )
    wanted = recipe.data.detectors
    maker = ExampleMaker(
        renderer,
        sighted=base.sighted,
        perceiver=Perceiver(DEFAULT_DETECTORS if wanted is None else wanted),
    )
    data = load_data(recipe.data, maker, seed=recipe.optimizer.seed)
    return Prepared(recipe=recipe, prompt=prompt, base=base, renderer=renderer, data=data)


def train(prepared: Prepared, *, resume: bool = False) -> Path:
    """Train and export.

    Args:
        resume: go on from the last checkpoint in the output folder.

    Returns:
        The folder of the adapter.

    Raises:
        ConfigError: the output folder holds another run, or nothing to resume.
    """
    recipe = prepared.recipe
    checkpoint = _claim(recipe, resume=resume)
    _list_left_out(recipe.output, prepared.data.left_out)
    with quiet_libraries():
        return _train(prepared, checkpoint)


def _train(prepared: Prepared, checkpoint: Path | None) -> Path:
    recipe = prepared.recipe
    trainer = make_trainer(prepared)
    best = Best(trainer, recipe.output / "best", metric=recipe.evaluation.metric)
    trainer.add_callback(EvaluateEachEpoch())
    trainer.add_callback(best)
    trainer.add_callback(Curves(recipe.output))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    scores, figures = best.load()
    test = _measure_test(trainer, prepared)
    folder = export(
        prepared,
        model=trainer.model,
        weights=recipe.output / "best",
        scores=scores,
        figures={"validation": figures, **({"test": test} if test else {})},
    )
    say(f"the adapter is in {folder}")
    return folder


def make_trainer(prepared: Prepared) -> VerdictTrainer:
    """The trainer, with an adapter attached where the recipe wants one."""
    recipe, data = prepared.recipe, prepared.data
    if recipe.tuning == "lora" and _computes_in_bf16(recipe):
        _store_in_bf16(prepared.base.model)
    splits = (data.train, data.validation, data.test)
    collator = Collator(
        examples=[example for split in splits for example in split],
        format=prepared.base.format,
        pad=prepared.base.tokenizer.pad_token_id,
        max_pixels=recipe.max_pixels,
    )
    start = len(data.train)
    trainer = VerdictTrainer(
        verdicts=prepared.renderer.verdicts,
        model=prepared.base.model,
        args=_arguments(recipe),
        data_collator=collator,
        train_dataset=Dataset.from_dict(rows_of(data.train)),
        eval_dataset=Dataset.from_dict(rows_of(data.validation, offset=start)),
        processing_class=prepared.base.tokenizer,
        peft_config=_lora(recipe, prepared.base.model),
    )
    trainer.remove_callback(PrinterCallback)  # to standard output, which is the result's
    return trainer


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what TRL and PEFT warn of in their own doings; nobody here can change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r".*gradient_checkpointing.* is deprecated", FutureWarning
        )
        warnings.filterwarnings("ignore", r"Could not find a config file", UserWarning)
        yield


def has_bf16() -> bool:
    """Whether this machine computes in bfloat16 fast enough for it to pay."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu = torch.cpu
    return any(
        getattr(cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _computes_in_bf16(recipe: Recipe) -> bool:
    precision = recipe.optimizer.precision
    return precision == "bf16" or (precision == "auto" and has_bf16())


def _store_in_bf16(model: Any) -> None:
    """The frozen matrices. Autocast would convert them again in every step, to the same numbers.

    The token embedding stays: it is what the residual stream's precision comes from.
    """
    kept = {id(model.get_input_embeddings().weight)}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in kept:
            module.to(torch.bfloat16)


def _arguments(recipe: Recipe) -> SFTConfig:
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
        bf16=_computes_in_bf16(recipe),
        gradient_checkpointing=optimizer.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        seed=optimizer.seed,
        data_seed=optimizer.seed,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        eval_strategy="no",  # `EvaluateEachEpoch` asks for it, so that checkpoints can be closer
        save_strategy="steps",
        save_steps=recipe.evaluation.save_steps,
        save_total_limit=2,
        logging_steps=10,
        report_to=list(recipe.evaluation.report_to),
        disable_tqdm=True,
    )


def _lora(recipe: Recipe, model: Any) -> LoraConfig | None:
    if recipe.tuning == "full":
        return None
    lora = recipe.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )


def _measure_test(trainer: VerdictTrainer, prepared: Prepared) -> dict[str, float | None]:
    """With the weights as they are; call after `Best.load`."""
    data = prepared.data
    risky = sum(example.risky for example in data.test)
    if not 0 < risky < len(data.test):
        return {}
    rows = rows_of(data.test, offset=len(data.train) + len(data.validation))
    trainer.evaluate(Dataset.from_dict(rows), metric_key_prefix="test")
    assert trainer.scores is not None
    return verdict_figures(trainer.scores)


def _claim(recipe: Recipe, *, resume: bool) -> Path | None:
    """The checkpoint to go on from; otherwise the output folder is this run's from now on."""
    out = recipe.output
    written = out / "recipe.yaml"
    settings = recipe.model_dump(mode="json")
    if resume:
        if not written.is_file():
            raise ConfigError(f"there is no run in {out} to resume")
        differing = _differing(yaml.safe_load(written.read_text(encoding="utf-8")), settings)
        if differing:
            raise ConfigError(
                f"the run in {out} was started with another recipe; these differ: "
                f"{', '.join(differing)}. Resume with the same, or choose another --out"
            )
        return last_checkpoint(out / "checkpoints")
    if written.exists():
        raise ConfigError(f"{out} holds a run already: --resume it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    written.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return None


def _differing(old: Any, new: Any, prefix: str = "") -> list[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [prefix]
    keys = dict.fromkeys([*old, *new])
    return [
        name
        for key in keys
        for name in _differing(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    ]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; ``None`` where there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for path in found:
        try:
            # The trainer writes this file last; a kill may have cut it short.
            json.loads((path / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            continue
        return path
    return None


def _list_left_out(out: Path, left_out: tuple[LeftOut, ...]) -> None:
    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in left_out]
    (out / "left_out.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    reasons: dict[str, int] = {}
    for entry in left_out:
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    for reason, count in reasons.items():
        say(f"left out: {count} records ({reason}); listed in {out / 'left_out.jsonl'}")
