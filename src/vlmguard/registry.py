"""Names to classes that are imported only when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from vlmguard.errors import ConfigError, UnknownName


class Registry:
    """A table of names, each standing for ``package.module:attribute``.

    Third parties add to it through an entry-point group, and any name that is itself of the form
    ``package.module:attribute`` is imported as it is.

    Args:
        kind: what the names stand for, in messages: ``"engine"``.
        known: name → ``package.module:attribute``.
        group: entry-point group for third parties, e.g. ``"vlmguard.engines"``.
    """

    def __init__(self, kind: str, known: Mapping[str, str], group: str) -> None:
        self._kind = kind
        self._known = dict(known)
        self._group = group

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._known, *(entry.name for entry in entry_points(group=self._group))})

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def load(self, name: str) -> Callable[..., Any]:
        """Import what ``name`` stands for.

        Raises:
            UnknownName: nothing of that name; lists the names there are.
            ConfigError: the module or attribute cannot be imported.
            MissingExtra: raised by the module itself.
        """
        path = self._known.get(name)
        if path is None:
            for entry in entry_points(group=self._group):
                if entry.name == name:
                    path = entry.value
                    break
            else:
                if ":" not in name:
                    raise UnknownName(
                        f"unknown {self._kind} {name!r}; known: {', '.join(self.names())}"
                    )
                path = name
        module_name, _, attribute = path.partition(":")
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"{self._kind} {name!r}: cannot import {path!r}: {error}") from error
        return found
