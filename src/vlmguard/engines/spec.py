"""Spec strings: one short string names a model, on the command line, in YAML and in the
environment.

::

    smollm2                                 the embedded model
    llamacpp:/path/model.gguf?mmproj=/path/mmproj.gguf&adapter=/path/lora.gguf
    openai:MODEL@http://host:8000/v1?timeout=60
    hf:org/model                            or hf:/path/to/folder
    vllm:org/model?max_model_len=16384      or vllm:/path/to/folder
    scripted:answers.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

from vlmguard.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """A parsed spec string: ``scheme:value?option=…&option=…``."""

    scheme: str
    value: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> EngineSpec:
        """Split a spec string. Values may contain ``:`` and ``@``; a ``?`` starts the options.

        Raises:
            ConfigError: empty, or an option without a value.
        """
        stripped = text.strip()
        head, mark, tail = stripped.partition("?")
        scheme, _, value = head.partition(":")
        if not scheme:
            raise ConfigError(f"empty model spec {text!r}; try smollm2 or openai:MODEL@URL")
        options: dict[str, str] = {}
        if mark:
            try:
                options = dict(parse_qsl(tail, strict_parsing=True, keep_blank_values=False))
            except ValueError:
                raise ConfigError(
                    f"model spec {text!r}: options after '?' must read key=value&key=value"
                ) from None
        return cls(scheme=scheme, value=value, options=options)

    def __str__(self) -> str:
        head = f"{self.scheme}:{self.value}" if self.value else self.scheme
        pairs = "&".join(f"{key}={quote(val, safe='/:.')}" for key, val in self.options.items())
        return f"{head}?{pairs}" if pairs else head

    def take(self, **known: type) -> dict[str, object]:
        """The options, converted; an unknown or malformed one is an error that lists the known.

        Args:
            known: option name → ``str``, ``int``, ``float`` or ``bool``.

        Raises:
            ConfigError: unknown option, or a value of the wrong type.
        """
        taken: dict[str, object] = {}
        for key, raw in self.options.items():
            if key not in known:
                listed = ", ".join(sorted(known)) or "none"
                raise ConfigError(f"{self}: unknown option {key!r}; known options: {listed}")
            kind = known[key]
            try:
                if kind is bool:
                    taken[key] = {"true": True, "1": True, "false": False, "0": False}[raw.lower()]
                else:
                    taken[key] = kind(raw)
            except (ValueError, KeyError):
                raise ConfigError(
                    f"{self}: option {key}={raw!r} is not a valid {kind.__name__}"
                ) from None
        return taken
