"""A training run, from the recipe to the adapter.

::

    OUT/recipe.yaml        what is run
    OUT/left_out.jsonl     records that are not trained on, and why
    OUT/checkpoints/       to resume from
    OUT/best/              the weights with the best figure so far, and its scores
    OUT/curves.csv, .png   how it goes
    OUT/adapter/           what is shipped: adapter, vlmguard.json, model card
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset  # type: ignore[attr-defined]  # the folder of that name hides it
from transformers import PrinterCallback

from vlmguard.engines.transformers_weights import is_out_of_memory
from vlmguard.errors import ConfigError
from vlmguard.models.notices import say
from vlmguard.perception import DEFAULT_DETECTORS, Perceiver
from vlmguard.prompts import Prompt, load_prompt
from vlmguard.rewriting.format import Layout
from vlmguard.training.answers import Writer, answer_figures, generated_margins
from vlmguard.training.arguments import (
    adapter_to_go_on_from,
    arguments,
    computes_in_bf16,
    lora,
)
from vlmguard.training.base_model import BaseModel, load_base, store_in_bf16
from vlmguard.training.batches import Collator, rows_of
from vlmguard.training.dataset import TrainingData, make_examples, read
from vlmguard.training.examples import Example, Renderer
from vlmguard.training.export import ADAPTER_FOLDER, export
from vlmguard.training.figures import Figures, Scores, verdict_figures
from vlmguard.training.materials import EvidenceCache, ExampleMaker
from vlmguard.training.output import check_same, claim, last_checkpoint, list_left_out
from vlmguard.training.progress import BEST_FILE, Best, Curves, EvaluateEachEpoch
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
    """Load the data and the model.

    Raises:
        ConfigError, DataError, InputError, PerceptionError: what is wrong, and where.
    """
    records = read(recipe.data)
    prompt = load_prompt("vlmguard.rewriting", recipe.prompt)
    with quiet_libraries():
        # Before the model: under DeepSpeed ZeRO-3 this is what has it loaded in pieces.
        arguments(recipe)
    base = load_base(recipe)
    renderer = Renderer(base, recipe, prompt)
    detectors = recipe.data.detectors
    cache = EvidenceCache(Perceiver(DEFAULT_DETECTORS if detectors is None else detectors))
    maker = ExampleMaker(renderer, sighted=base.sighted, cache=cache)
    with PartialState().main_process_first():  # so that the others find the evidence
        maker.look_ahead(records.located)
    data = make_examples(records, recipe.data, maker, seed=recipe.optimizer.seed)
    return Prepared(recipe=recipe, prompt=prompt, base=base, renderer=renderer, data=data)


def train(prepared: Prepared, *, resume: bool = False) -> Path:
    """Train and export.

    Args:
        prepared: see `prepare`.
        resume: go on from the last checkpoint in the output folder.

    Returns:
        The folder of the adapter.

    Raises:
        ConfigError: the output folder holds another run, or nothing to resume; or the machine has
            too little memory.
    """
    recipe = prepared.recipe
    if PartialState().is_main_process:
        if resume:
            check_same(recipe)
        else:
            claim(recipe)
        list_left_out(recipe.output, prepared.data.left_out)
    PartialState().wait_for_everyone()
    checkpoint = last_checkpoint(recipe.output / "checkpoints") if resume else None
    try:
        with quiet_libraries():
            return _Run(prepared).train(checkpoint)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"out of memory with optimizer.batch_size={recipe.optimizer.batch_size}. Halve it and "
            "double optimizer.accumulation, which gives the same result; or set "
            "optimizer.gradient_checkpointing: true"
        ) from error


def measure(prepared: Prepared) -> Path:
    """Measure what a finished run kept as its best, calibrate and export it again.

    After training under FSDP or DeepSpeed, which cannot do so with weights in pieces; or with
    another calibration, which gives other thresholds for the same weights.

    Args:
        prepared: of the same recipe.

    Returns:
        The folder of the adapter.

    Raises:
        ConfigError: there is no such run.
    """
    check_same(prepared.recipe, trained=True)
    if not (prepared.recipe.output / "best" / BEST_FILE).is_file():
        raise ConfigError(f"the run in {prepared.recipe.output} has kept no weights to measure")
    with quiet_libraries():
        return _Run(prepared).measure()


def make_trainer(prepared: Prepared) -> VerdictTrainer:
    """The trainer, with an adapter attached where the recipe wants one."""
    recipe, data, base = prepared.recipe, prepared.data, prepared.base
    if recipe.tuning == "lora" and computes_in_bf16(recipe):
        store_in_bf16(base.model)
    splits = (data.train, data.validation, data.test)
    begun = adapter_to_go_on_from(recipe, base.model)
    trainer = VerdictTrainer(
        verdicts=prepared.renderer.verdicts,
        model=base.model if begun is None else begun,
        args=arguments(recipe),
        data_collator=Collator(
            examples=[example for split in splits for example in split],
            format=base.format,
            pad=base.tokenizer.pad_token_id,
            max_pixels=recipe.max_pixels,
        ),
        train_dataset=Dataset.from_dict(rows_of(data.train)),
        eval_dataset=Dataset.from_dict(rows_of(data.validation, offset=len(data.train))),
        processing_class=base.tokenizer,
        peft_config=None
        if begun is not None or recipe.tuning == "full"
        else lora(recipe, base.model),
    )
    trainer.remove_callback(PrinterCallback)  # prints to standard output, which is the result's
    return trainer


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what TRL and PEFT warn of in their own doings; nobody here can change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
        yield


class _Run:
    """The trainer, and what is measured with it."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._recipe = prepared.recipe
        self._trainer = make_trainer(prepared)
        out = self._recipe.output
        self._best = Best(self._trainer, out / "best", metric=self._recipe.evaluation.metric)
        for callback in (EvaluateEachEpoch(self._trainer), self._best, Curves(out)):
            self._trainer.add_callback(callback)

    def train(self, checkpoint: Path | None) -> Path:
        trainer = self._trainer
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        scores, validation = self._best.read()
        figures: dict[str, Figures] = {"validation": validation}
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            # The weights lie in pieces on several devices, and best/ holds them whole.
            say("when all processes have ended, measure it in one: vlmguard train … --measure")
        else:
            self._best.load()
            scores = self._measure_more(scores, figures)
        return self._export(scores, figures)

    def measure(self) -> Path:
        self._best.load()
        loss = self._trainer.evaluate()["eval_loss"]
        scores = self._scores()
        figures: dict[str, Figures] = {"validation": {"loss": loss, **verdict_figures(scores)}}
        return self._export(self._measure_more(scores, figures), figures)

    def _export(self, scores: Scores, figures: dict[str, Figures]) -> Path:
        if self._trainer.is_world_process_zero():
            export(self._prepared, scores=scores, figures=figures)
        return self._recipe.output / ADAPTER_FOLDER

    def _measure_more(self, scores: Scores, figures: dict[str, Figures]) -> Scores:
        """Measure the test split and whole answers; the scores to calibrate on."""
        if test := self._measure_test():
            figures["test"] = test
        if self._trainer.is_world_process_zero():
            scores = self._measure_answers(scores, figures)
        return scores

    def _scores(self) -> Scores:
        assert self._trainer.scores is not None
        return self._trainer.scores

    def _measure_test(self) -> Figures:
        data = self._prepared.data
        if not 0 < sum(example.risky for example in data.test) < len(data.test):
            return {}
        rows = rows_of(data.test, offset=len(data.train) + len(data.validation))
        self._trainer.evaluate(Dataset.from_dict(rows), metric_key_prefix="test")
        return verdict_figures(self._scores())

    def _measure_answers(self, scores: Scores, figures: dict[str, Figures]) -> Scores:
        recipe, validation = self._recipe, self._prepared.data.validation
        writer = Writer(
            self._trainer.model,
            self._prepared.base,
            layout=recipe.layout,
            verdicts=self._prepared.renderer.verdicts,
            max_pixels=recipe.max_pixels,
            bf16=computes_in_bf16(recipe),
        )
        if recipe.layout is Layout.REASON_FIRST:
            scores = generated_margins(writer, validation)
            figures["validation after its own reasons"] = verdict_figures(scores)
        risky: list[Example] = [example for example in validation if example.risky]
        if recipe.evaluation.generate:
            chosen = risky[: recipe.evaluation.generate]
            figures["answers"] = answer_figures(writer, chosen)
        return scores
