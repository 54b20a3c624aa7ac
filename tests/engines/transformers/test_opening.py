"""Opening and loading models, good and damaged."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engines.transformers.common import (
    PROMPT,
    RED,
    SHORT,
    loaded_model,
    open_model,
)
from tests.tiny_fixtures import Folders
from vlmguard.engines import Capability, Engine, open_engine
from vlmguard.errors import (
    ConfigError,
    MissingExtra,
)
from vlmguard.types import Chat

# PEFT 0.21 asks models for a property that transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf", "name a model"),
        ("hf:", "name a model"),
        ("hf:/no/such/folder", "neither a folder that exists nor of the form org/model"),
        ("hf:./missing", "neither a folder"),
        ("hf:a/b/c", "neither a folder"),
        ("hf:{empty}", "no config.json"),
        ("hf:{file}", "is a file; hf: takes a folder"),
        ("hf:{lora}", r"is an adapter; name it beside its base: hf:BASE\?adapter="),
        ("hf:{model}?dtype=int4", "dtype='int4' is not one of auto, bfloat16, float16, float32"),
        ("hf:{model}?device=tpu", "device='tpu' is not auto, cpu, cuda or cuda:N"),
        ("hf:{model}?max_pixels=0", "max_pixels=0 must be at least 1"),
        ("hf:{model}?max_pixels=big", "max_pixels='big' is not a valid int"),
        ("hf:{model}?trust_remote_code=perhaps", "not a valid bool"),
        ("hf:{model}?colour=red", "unknown option 'colour'; known options: adapter, device"),
        ("hf:{model}?adapter={empty}", "no adapter_config.json in it"),
        ("hf:{model}?adapter={half}", "no adapter_model.safetensors in it"),
        ("hf:{model}?adapter=/nowhere", "no such folder"),
    ],
)
def test_wrong_specs(spec: str, message: str, folder: Folders, tmp_path: Path) -> None:
    """Whatever is wrong with a spec is said at once, with the value and the choices."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half/adapter_config.json").touch()
    places = {
        "empty": tmp_path / "empty",
        "half": tmp_path / "half",
        "file": tmp_path / "model.gguf",
        "lora": folder("llama-lora"),
        "model": folder("llama"),
    }
    with pytest.raises(ConfigError, match=message):
        open_engine(spec.format(**places))


def test_missing_extra(folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the message is what installs it; peft only matters with adapters."""
    find = importlib.util.find_spec

    def without(missing: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == missing else find(name)
        )

    without("torch")
    with pytest.raises(MissingExtra, match=r"pip install 'vlmguard-r1\[hf\]'"):
        open_model(folder("llama"))
    without("peft")
    open_model(folder("llama"))
    with pytest.raises(MissingExtra, match="the transformers engine"):
        open_model(folder("llama"), adapter=folder("llama-lora"))


def test_opening_is_cheap(folder: Folders) -> None:
    """Opening reads no weights, and says what the model can do by its configuration alone."""
    start = time.perf_counter()
    engine = open_model(folder("llama"))
    assert time.perf_counter() - start < 0.1
    assert engine.spec == f"hf:{folder('llama')}"
    text = {Capability.STREAMING, Capability.LOGPROBS, Capability.PREFIX, Capability.ADAPTERS}
    assert engine.capabilities == text
    assert open_model(folder("llava")).capabilities == text | {Capability.VISION}
    assert engine._host is None
    assert isinstance(engine, Engine)


async def test_unknown_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub model that is neither cached nor reachable is named, in one line."""
    monkeypatch.setenv("VLMGUARD_OFFLINE", "1")
    engine = open_engine("hf:nobody/no-such-model?revision=v1")
    with pytest.raises(ConfigError, match=r"^cannot load nobody/no-such-model: [^\n]+$"):
        await engine.generate(PROMPT, SHORT)
    await engine.aclose()


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt17"}')


def _no_image_processor(folder: Path) -> None:
    (folder / "processor_config.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [_cut_weights, _no_weights, _no_tokenizer, _bad_config, _unknown_type, _no_image_processor],
)
async def test_damaged_folder(
    damage: Callable[[Path], None], folder: Folders, tmp_path: Path
) -> None:
    """A damaged model is a configuration error of one line that names the folder, each time."""
    shutil.copytree(folder("llava"), tmp_path / "model")
    damage(tmp_path / "model")
    engine = open_model(tmp_path / "model")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^cannot load /[^\n]+/model: [^\n]+$"):
            await engine.generate(PROMPT, SHORT)
    await engine.aclose()


async def test_says_that_it_loads(folder: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    """The first use says in one line what it loads and where, and later ones say nothing."""
    engine = open_model(folder("llama"), device="cpu")
    await engine.generate(PROMPT, SHORT)
    await engine.generate(PROMPT, SHORT)
    await engine.aclose()
    assert capsys.readouterr().err == f"loading {folder('llama')} on cpu …\n"


async def test_unavailable_gpu(folder: Folders) -> None:
    """Asking for a GPU that is not there says how many there are."""
    engine = open_model(folder("llama"), device="cuda:99")
    with pytest.raises(ConfigError, match=r"device=cuda:99: torch sees \d+ CUDA devices"):
        await engine.generate(PROMPT, SHORT)
    await engine.aclose()


@pytest.mark.parametrize(("asked", "got"), [("auto", "bfloat16"), ("float32", "float32")])
async def test_number_format(asked: str, got: str, folder: Folders, tmp_path: Path) -> None:
    """A float16 checkpoint runs in bfloat16 on a CPU, unless told otherwise."""
    from transformers import AutoModelForImageTextToText

    shutil.copytree(folder("qwen2_vl"), tmp_path / "half")
    model = AutoModelForImageTextToText.from_pretrained(folder("qwen2_vl"), dtype="float16")
    model.save_pretrained(tmp_path / "half")
    engine = open_model(tmp_path / "half", dtype=asked, device="cpu")
    assert (await loaded_model(engine)).model.dtype is getattr(torch, got)
    completion = await engine.generate(Chat.of("?", [RED]), SHORT)
    await engine.aclose()
    assert completion.usage.completion_tokens > 0
