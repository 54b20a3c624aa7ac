"""Opens what a spec string names in a registry."""

from __future__ import annotations

import re
from typing import Any

from vlmguard.engines import EngineSpec
from vlmguard.errors import ConfigError
from vlmguard.registry import Registry

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def split_spec(registry: Registry, text: str) -> EngineSpec:
    """A spec string, whose scheme is a name of the registry or ``package.module:attribute``.

    Raises:
        ConfigError: options that do not read ``key=value``.
    """
    head, mark, tail = text.strip().partition("?")
    if _IMPORT_PATH.fullmatch(head) and head.partition(":")[0] not in registry:
        options = EngineSpec.parse(f"x?{tail}").options if mark else {}
        return EngineSpec(scheme=head, options=options)
    return EngineSpec.parse(text)


def open_named(registry: Registry, text: str, *methods: str) -> Any:
    """What a spec string names, opened by the function ``(EngineSpec) -> …`` of its scheme.

    Args:
        registry: of scheme → function.
        text: the spec string.
        methods: that the opened thing must have.

    Raises:
        ConfigError: malformed, or a method is missing.
        UnknownName: unknown scheme; lists those there are.
        MissingExtra: its dependencies are not installed.
    """
    spec = split_spec(registry, text)
    opened: Any = registry.load(spec.scheme)(spec)
    missing = [method for method in methods if not hasattr(opened, method)]
    if missing:
        raise ConfigError(
            f"{text}: what {spec.scheme} gave, a {type(opened).__name__}, has no "
            f"{', '.join(missing)}"
        )
    return opened
