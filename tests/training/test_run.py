"""Whole runs on tiny models: training, resuming, exporting, and what the guard makes of it."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.training import common
from tests.training.conftest import LIBRARIES_OWN_WARNINGS, Folders
from vlmguard.errors import ConfigError
from vlmguard.images import load_image
from vlmguard.prompts import load_prompt
from vlmguard.rewriting import load_policy, open_rewriter
from vlmguard.rewriting.format import Layout
from vlmguard.rewriting.metadata import load_metadata
from vlmguard.training import answers, run
from vlmguard.training.output import last_checkpoint
from vlmguard.types import Chat, Image

pytestmark = LIBRARIES_OWN_WARNINGS


def go(model: Path, data: Path, out: Path, changes: Mapping[str, Any], **how: bool) -> Path:
    """Train; the adapter's folder."""
    return run.train(run.prepare(common.recipe(model, data, out, changes)), **how)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text records, one of them far too long."""
    long = common.text_record(99, "train", risky=False, prompt="ah " * 1200)
    return common.write(tmp_path_factory.mktemp("data"), [*common.text_records(), long])


CHANGES = {"optimizer.epochs": 7, "evaluation.generate": 1, "export.merged": True}


@pytest.fixture(scope="module")
def adapter(folder: Folders, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run long enough to tell the verdicts apart."""
    out = tmp_path_factory.mktemp("run") / "out"
    return go(folder("llama"), data, out, CHANGES)


def risks(spec: str, requests: list[tuple[str, tuple[Image, ...]]]) -> list[float]:
    """What the guard's rewriter says about some requests."""
    rewriter = open_rewriter(spec)
    lenient = load_policy("permissive").model_copy(update={"threshold": 1.0})

    async def ask() -> list[float]:
        found = [
            (await rewriter.rewrite(Chat.of(prompt, images), lenient)).risk
            for prompt, images in requests
        ]
        await rewriter.engine.aclose()
        return found

    return asyncio.run(ask())


def test_the_guard_judges_as_was_trained(folder: Folders, adapter: Path) -> None:
    """Loaded by its path and served by the engine, it gives the risks measured in training."""
    asked: list[tuple[str, tuple[Image, ...]]] = [
        (record.prompt, ()) for record in common.text_records() if record.split == "validation"
    ]
    served = risks(f"hf:{folder('llama')}?adapter={adapter}", asked)
    best = json.loads((adapter.parent / "best" / "best.json").read_bytes())
    measured = [1 / (1 + math.exp(-margin)) for margin in best["margins"]]
    assert served == pytest.approx(measured, abs=1e-3)
    threshold = load_metadata(adapter).thresholds["balanced"]
    assert [risk > threshold for risk in served] == [bool(risky) for risky in best["risky"]]


def test_a_run_leaves_everything_a_reader_needs(adapter: Path) -> None:
    """Metadata, card, curves as a table and as a picture, and what was left out."""
    out = adapter.parent
    metadata = load_metadata(adapter)
    assert metadata.files == {"peft": ".", "merged": "merged"}
    assert load_metadata(adapter / "merged").files == {"merged": "."}
    assert metadata.data.records == {"train": 12, "validation": 4, "test": 4}
    assert metadata.data.dropped == {"longer than data.max_length": 1}
    assert metadata.figures["validation"]["auc"] == 1.0
    assert metadata.figures["test"]["auc"] is not None
    assert metadata.figures["answers"]["answered"] == 1
    assert metadata.calibration is not None
    assert metadata.calibration.apply(0.99) > metadata.calibration.apply(0.01)
    (left_out,) = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    assert left_out["record"] == "train-99"
    assert "tokens" in left_out["detail"]
    with (out / "curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["eval_auc"]) for row in rows if row["eval_auc"]][-1] == 1.0
    with PILImage.open(out / "curves.png") as drawn:
        assert drawn.width > 1000
    card = (adapter / "README.md").read_text()
    assert "| validation |" in card
    assert metadata.data.sha256 in card


def test_what_a_run_kept_is_measured_again_the_same(
    folder: Folders, data: Path, adapter: Path
) -> None:
    """As after training in pieces on several devices: the same figures; or calibrated anew."""
    before = load_metadata(adapter)
    (adapter / "vlmguard.json").unlink()
    recipe = common.recipe(folder("llama"), data, adapter.parent, CHANGES)
    again = load_metadata(run.measure(run.prepare(recipe)))
    assert again.thresholds == pytest.approx(before.thresholds, abs=1e-4)
    assert again.figures["validation"] == pytest.approx(before.figures["validation"], abs=1e-4)
    assert again.figures["test"] == pytest.approx(before.figures["test"], abs=1e-4)
    changed = {**CHANGES, "calibration.balanced": 0.9}
    recipe = common.recipe(folder("llama"), data, adapter.parent, changed)
    anew = load_metadata(run.measure(run.prepare(recipe)))
    assert anew.recipe["calibration"]["balanced"] == 0.9
    assert anew.figures["validation"] == pytest.approx(before.figures["validation"], abs=1e-4)
    run.measure(run.prepare(common.recipe(folder("llama"), data, adapter.parent, CHANGES)))


def test_the_merged_checkpoint_is_base_and_adapter(folder: Folders, adapter: Path) -> None:
    """It computes what base and adapter compute together."""
    from peft import PeftModel

    base: Any = AutoModelForCausalLM.from_pretrained(folder("llama"))
    adapted: Any = PeftModel.from_pretrained(base, str(adapter))
    merged: Any = AutoModelForCausalLM.from_pretrained(adapter / "merged")
    ids = torch.arange(40, 60).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-3)


class _Stop(TrainerCallback):
    """A kill: after a step, or before the evaluation at the end of an epoch."""

    def __init__(self, where: str) -> None:
        self._where = where

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._where == "within an epoch" and state.global_step == 5:
            raise KeyboardInterrupt

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._where == "before an evaluation" and state.global_step == 6:
            raise KeyboardInterrupt


STEPS = {"optimizer.epochs": 3, "evaluation.save_steps": 2, "lora.dropout": 0.2}


@pytest.fixture(scope="module")
def uninterrupted(folder: Folders, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run with dropout."""
    return go(folder("llama"), data, tmp_path_factory.mktemp("whole") / "out", STEPS)


@pytest.mark.parametrize("where", ["within an epoch", "before an evaluation"])
def test_a_resumed_run_ends_with_the_same_weights(
    folder: Folders,
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Stopped and resumed, dropout included, to the last bit; and with the same curve."""
    make_trainer = run.make_trainer

    def stopping(prepared: run.Prepared) -> Any:
        trainer = make_trainer(prepared)
        trainer.add_callback(_Stop(where))
        return trainer

    monkeypatch.setattr(run, "make_trainer", stopping)
    with pytest.raises(KeyboardInterrupt):
        go(folder("llama"), data, tmp_path / "cut", STEPS)
    monkeypatch.setattr(run, "make_trainer", make_trainer)
    # A checkpoint that the kill cut short is passed over.
    broken = tmp_path / "cut" / "checkpoints" / "checkpoint-7"
    broken.mkdir()
    (broken / "trainer_state.json").write_text("{")
    resumed = go(folder("llama"), data, tmp_path / "cut", STEPS, resume=True)
    one, other = (load_file(at / "adapter_model.safetensors") for at in (uninterrupted, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    curves = [(at.parent / "curves.csv").read_text() for at in (uninterrupted, resumed)]
    assert curves[0] == curves[1]


def test_a_folder_is_one_runs_alone(folder: Folders, data: Path, adapter: Path) -> None:
    """Neither another run nor a resume with other settings may write into it."""
    out = adapter.parent
    with pytest.raises(ConfigError, match="holds a run already"):
        go(folder("llama"), data, out, {})
    with pytest.raises(ConfigError, match=r"differ: .*optimizer\.epochs"):
        go(folder("llama"), data, out, {"optimizer.epochs": 8}, resume=True)
    with pytest.raises(ConfigError, match="no run in"):
        go(folder("llama"), data, out / "nowhere", {}, resume=True)


def test_the_reason_first_layout_is_judged_by_its_own_reasons(
    folder: Folders, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thresholds come from verdicts after reasons that the model wrote, not from the right."""
    monkeypatch.setattr(answers, "MAX_NEW_TOKENS", 24)
    changes = {"layout": Layout.REASON_FIRST, "optimizer.max_steps": 2}
    metadata = load_metadata(go(folder("llama"), data, tmp_path / "out", changes))
    assert metadata.layout is Layout.REASON_FIRST
    # After two steps it writes no verdict, which serving takes for a failure.
    assert metadata.figures["validation after its own reasons"]["over_refusal"] == 1.0


def test_the_language_part_of_a_model_that_sees_goes_to_gguf(
    folder: Folders, tmp_path: Path
) -> None:
    """llama.cpp keeps the vision tower in a file of its own; the adapter has its layer names."""
    import gguf

    data = common.write(tmp_path, common.picture_records(tmp_path))
    changes = {"optimizer.max_steps": 1, "export.gguf": True}
    out = go(folder("idefics3"), data, tmp_path / "out", changes)
    names = {tensor.name for tensor in gguf.GGUFReader(out / "adapter.gguf").tensors}
    assert len(names) == 2 * 7 * 2  # layers, projections, factors
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} <= names


def test_an_adapter_can_be_trained_on(
    folder: Folders, adapter: Path, data: Path, tmp_path: Path
) -> None:
    """Training goes on from its weights; an adapter of another shape, or none, is an error."""
    model = folder("llama")
    still = {"optimizer.max_steps": 1, "optimizer.learning_rate": 1e-12}
    out = go(model, data, tmp_path / "out", {**still, "lora.start_from": str(adapter)})
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, out))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(ConfigError, match=r"has r=\d+, the recipe 3"):
        go(model, data, tmp_path / "a", {**still, "lora.start_from": str(adapter), "lora.r": 3})
    with pytest.raises(ConfigError, match="there is no PEFT adapter in"):
        go(model, data, tmp_path / "b", {**still, "lora.start_from": str(tmp_path)})


def test_full_tuning_leaves_a_checkpoint_that_the_engine_loads(
    folder: Folders, data: Path, tmp_path: Path
) -> None:
    """Without an adapter, all weights move, and the folder is a model."""
    changes = {"tuning": "full", "optimizer.max_steps": 2, "optimizer.learning_rate": 1e-3}
    out = go(folder("llama"), data, tmp_path / "out", changes)
    assert load_metadata(out).files == {"merged": "."}
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder("llama"), out)
    )
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    # A rewriter opened by that folder is served as it was trained, not as any model zero-shot.
    rewriter = open_rewriter(f"hf:{out}")
    assert rewriter.prompt.text == load_prompt("vlmguard.rewriting", "trained.md").text


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    """By number, not by name, and only with a state that can be read."""
    assert last_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (100, '{"a": '), (101, None)):
        made = tmp_path / f"checkpoint-{step}"
        made.mkdir()
        if state is not None:
            (made / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_vl"])
def test_models_that_see_judge_pictures(folder: Folders, tmp_path: Path, family: str) -> None:
    """Trained on red against green, served by the engine, they tell the two apart."""
    data = common.write(tmp_path, common.picture_records(tmp_path))
    out = go(folder(family), data, tmp_path / "out", {"optimizer.epochs": 14})
    red, green = (
        load_image(tmp_path / common.picture_ref(tmp_path, color).path) for color in ("red", "lime")
    )
    risky, safe = risks(
        f"hf:{folder(family)}?adapter={out}", [("go on", (red,)), ("go on", (green,))]
    )
    assert safe < load_metadata(out).thresholds["balanced"] < risky


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_learns(folder: Folders, data: Path, tmp_path: Path) -> None:
    """Side by side under torchrun, or one batch after the other: the same weights."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: tiny\nmodel: {folder('llama')}\noutput: unused\ndata: {{paths: [{data}]}}\n"
        "lora: {r: 4, dropout: 0}\n"
        "optimizer: {epochs: 2, batch_size: 2, accumulation: 2, precision: fp32}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    training = ["-m", "vlmguard.cli.main", "train", str(recipe), "--out"]
    alone = [sys.executable, *training, str(tmp_path / "alone")]
    subprocess.run(alone, check=True, env=environment)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    together = [sys.executable, *launcher, *training, str(tmp_path / "together")]
    subprocess.run([*together, "--set", "optimizer.accumulation=1"], check=True, env=environment)
    one, two = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("alone", "together")
    )
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_is_resumed_by_the_command(
    folder: Folders, data: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle; the same command with --resume ends with the uninterrupted weights."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: tiny\nmodel: {folder('llama')}\noutput: unused\ndata: {{paths: [{data}]}}\n"
        "lora: {r: 4}\noptimizer: {epochs: 20, batch_size: 2, precision: fp32}\n"
        "evaluation: {save_steps: 3}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out: Path, *more: str) -> list[str]:
        program = [sys.executable, "-m", "vlmguard.cli.main", "train"]
        return [*program, str(recipe), "--out", str(out), *more]

    subprocess.run(command(tmp_path / "whole"), check=True, env=environment)
    running = subprocess.Popen(command(tmp_path / "cut"), env=environment)
    while last_checkpoint(tmp_path / "cut" / "checkpoints") is None:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    subprocess.run(command(tmp_path / "cut", "--resume"), check=True, env=environment)
    whole, cut = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
