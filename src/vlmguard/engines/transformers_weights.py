"""Which weights an ``hf:`` spec names, and what may go wrong with them.

No torch here: opening an engine is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from vlmguard.errors import ConfigError, VLMGuardError

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What engines must agree on to share one copy in memory.

    Attributes:
        model: a folder, or ``org/model`` of the Hugging Face Hub.
        revision: branch, tag or commit of a Hub model.
        dtype: one of `DTYPES`; ``"auto"`` is the checkpoint's own.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        trust_remote_code: run Python that comes with the model.
        offline: take Hub models from the cache only.

    Raises:
        ConfigError: one of them is malformed, or there is no such folder.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        _check_model(self.model)
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device={self.device!r} is not auto, cpu, cuda or cuda:N")

    def files(self) -> dict[str, Any]:
        """What finds the files."""
        found: dict[str, Any] = {}
        if self.revision is not None:
            found["revision"] = self.revision
        if self.offline:
            found["local_files_only"] = True
        return found

    def origin(self) -> dict[str, Any]:
        """What every ``from_pretrained`` of an auto class takes."""
        return {**self.files(), "trust_remote_code": self.trust_remote_code}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever goes wrong while files are read becomes a `ConfigError` of one line."""
    try:
        yield
    except VLMGuardError:
        raise
    except Exception as error:  # everything from OSError to a checkpoint's own code
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"cannot load {what}: {shorten(reason, 400, placeholder=' …')}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Torch has an exception for it on GPUs, and a plain RuntimeError on CPUs."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (type(error) is RuntimeError and "allocate memory" in str(error))
    )


def check_adapter(folder: Path) -> Path:
    """A folder as PEFT's ``save_pretrained`` writes it.

    Raises:
        ConfigError: it is not.
    """
    if not folder.is_dir():
        raise ConfigError(f"adapter={folder}: no such folder")
    weights = ("adapter_model.safetensors", "adapter_model.bin")
    for alternatives in (("adapter_config.json",), weights):
        if not any((folder / name).is_file() for name in alternatives):
            raise ConfigError(
                f"adapter={folder} is not a folder that PEFT saved: no {alternatives[0]} in it"
            )
    return folder


def _check_model(model: str) -> None:
    path = Path(model)
    if path.is_dir():
        if (path / "config.json").is_file():
            return
        if (path / "adapter_config.json").is_file():
            raise ConfigError(
                f"{model} is an adapter; name it beside its base: hf:BASE?adapter={model}"
            )
        raise ConfigError(f"{model} is not a model folder: no config.json in it")
    if path.is_file():
        raise ConfigError(f"{model} is a file; hf: takes a folder, and llamacpp: a GGUF file")
    if not re.fullmatch(r"(?!\.)[\w.-]+(/[\w.-]+)?", model):
        raise ConfigError(f"{model!r} is neither a folder that exists nor of the form org/model")
