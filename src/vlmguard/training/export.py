"""What a run leaves: the adapter, what it says about itself, and a card for people."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from vlmguard.models.notices import say
from vlmguard.rewriting.metadata import METADATA_FILE, AdapterMetadata, PromptFacts
from vlmguard.rewriting.policy import CATEGORY_NAMES
from vlmguard.training.base_model import load_base, quiet_loading
from vlmguard.training.card import model_card
from vlmguard.training.figures import Figures, Scores, calibrate, thresholds, verdict_figures
from vlmguard.training.gguf_adapter import convert_adapter
from vlmguard.training.recipe import Recipe

if TYPE_CHECKING:
    from vlmguard.training.run import Prepared

ADAPTER_FOLDER = "adapter"
GGUF_FILE = "adapter.gguf"
MERGED_FOLDER = "merged"
_CHECKPOINT_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
_PACKAGES = ("vlmguard-r1", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def export(prepared: Prepared, *, scores: Scores, figures: dict[str, Figures]) -> Path:
    """Write the folder that is shipped, from the best weights of the run.

    Args:
        prepared: the run.
        scores: of the validation split, by those weights.
        figures: split → metric → value.

    Returns:
        The folder.
    """
    with quiet_loading():
        return _export(prepared, scores=scores, figures=figures)


def _export(prepared: Prepared, *, scores: Scores, figures: dict[str, Figures]) -> Path:
    recipe = prepared.recipe
    best, folder = recipe.output / "best", recipe.output / ADAPTER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    if recipe.tuning == "full":
        _copy_checkpoint(best, folder)
        prepared.base.processor.save_pretrained(str(folder))
        files["merged"] = "."
    else:
        _copy_adapter(best, folder, base=recipe.model)
        files["peft"] = "."
    if recipe.export.gguf:
        convert_adapter(best, folder / GGUF_FILE, prepared.base.model.config)
        files["gguf"] = GGUF_FILE
    if recipe.export.merged:
        merge(recipe, best, folder / MERGED_FOLDER)
        files["merged"] = MERGED_FOLDER
    metadata = describe(prepared, scores=scores, figures=figures, files=files)
    _write_facts(folder, metadata)
    if recipe.export.merged:  # a model of its own, which is moved without the rest
        merged = metadata.model_copy(update={"files": {"merged": "."}})
        _write_facts(folder / MERGED_FOLDER, merged)
    say(f"the adapter is in {folder}")
    return folder


def _write_facts(folder: Path, metadata: AdapterMetadata) -> None:
    text = metadata.model_dump_json(indent=2) + "\n"
    (folder / METADATA_FILE).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(metadata), encoding="utf-8")


def merge(recipe: Recipe, adapter: Path, folder: Path) -> None:
    """Write base and adapter as one plain checkpoint, in the base's own precision.

    The base is loaded afresh: the one that was trained on may be quantized or in bf16.
    """
    base = load_base(recipe, plain=True)
    merged: Any = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(folder))
    base.processor.save_pretrained(str(folder))


def _copy_checkpoint(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.suffix == ".safetensors" or file.name in _CHECKPOINT_FILES:
            shutil.copyfile(file, folder / file.name)


def _copy_adapter(source: Path, folder: Path, *, base: str) -> None:
    """With the base named as people know it, in place of a path on this machine."""
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    settings = json.loads((source / "adapter_config.json").read_bytes())
    settings["base_model_name_or_path"] = base
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def describe(
    prepared: Prepared,
    *,
    scores: Scores,
    figures: dict[str, Figures],
    files: dict[str, str],
) -> AdapterMetadata:
    """What the adapter says about itself, thresholds included."""
    recipe = prepared.recipe
    chosen = thresholds(scores, recipe.calibration)
    at = {
        f"validation at {preset}": verdict_figures(scores, threshold)
        for preset, threshold in chosen.items()
    }
    return AdapterMetadata(
        name=recipe.name,
        layout=recipe.layout,
        prompt=PromptFacts(file=recipe.prompt, hash=prepared.prompt.hash),
        base=prepared.base.facts,
        thresholds=chosen,
        calibration=calibrate(scores),
        categories=CATEGORY_NAMES,
        files=files,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        seed=recipe.optimizer.seed,
        data=prepared.data.facts,
        figures={**figures, **at},
        recipe=recipe.model_dump(mode="json", exclude={"output"}),
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
