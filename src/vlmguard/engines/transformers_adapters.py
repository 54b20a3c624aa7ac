"""LoRA adapters beside the base weights, chosen for every request."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from vlmguard.engines.transformers_weights import explained
from vlmguard.errors import ConfigError
from vlmguard.models.notices import say


class Adapters:
    """The adapters of one model, loaded on first use and kept.

    Args:
        model: of transformers; its layers are wrapped in place when the first adapter comes.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None
        self._names: dict[Path, str] = {}
        self._unfit: dict[Path, str] = {}

    def use(self, folder: Path | None) -> AbstractContextManager[Any]:
        """Answer with this adapter within the context; with the bare base for ``None``.

        Raises:
            ConfigError: it cannot be loaded, or does not fit the model.
        """
        if folder is None:
            return nullcontext() if self._peft is None else self._peft.disable_adapter()
        if folder in self._unfit:
            raise ConfigError(self._unfit[folder])
        if folder not in self._names:
            try:
                self._names[folder] = self._attach(folder)
            except ConfigError as error:
                self._unfit[folder] = str(error)  # attaching it again would only take memory
                raise
        self._peft.set_adapter(self._names[folder], inference_mode=True)
        return nullcontext()

    def _attach(self, folder: Path) -> str:
        from peft import PeftConfig, PeftModel  # noqa: PLC0415  (two seconds, and rarely needed)

        say(f"loading adapter {folder} …")
        name = f"adapter_{len(self._names) + len(self._unfit)}"
        with explained(f"adapter {folder}"):
            config = PeftConfig.from_pretrained(str(folder))
            if config.is_prompt_learning:
                raise ConfigError(f"adapter {folder} is {config.peft_type.value}; use a LoRA")
            if self._peft is None:
                self._peft = PeftModel(self._model, config, name)
            keys = self._peft.load_adapter(str(folder), name)
        missing = [key for key in keys.missing_keys if name in key]
        if stray := [*keys.unexpected_keys, *missing]:
            # Such an adapter would be random or without effect, and nobody would notice.
            raise ConfigError(
                f"adapter {folder} does not fit {self._model.name_or_path}: it was trained for "
                f"{config.base_model_name_or_path!r} (for instance, {stray[0]} has no counterpart)"
            )
        return name
