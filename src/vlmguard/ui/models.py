"""The models that the page may use: opened once, on first use, and closed with the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from vlmguard.defences import Defence, Guard, open_defence
from vlmguard.engines import Engine, open_engine
from vlmguard.errors import ConfigError
from vlmguard.perception import Perceiver
from vlmguard.rewriting import PromptedRewriter, open_rewriter

Key = TypeVar("Key")
Value = TypeVar("Value")


class Models:
    """Targets and rewriters by their spec.

    Args:
        targets: that the page offers, the first by default.
        rewriters: likewise.
        any_model: whether a visitor may name others. A spec can name files, addresses and Python
            code of this machine, so only those who could run them anyway should.
    """

    def __init__(
        self, targets: Sequence[str], rewriters: Sequence[str], *, any_model: bool
    ) -> None:
        self.targets = tuple(dict.fromkeys(targets))
        self.rewriters = tuple(dict.fromkeys(rewriters))
        self.any_model = any_model
        self.perceiver = Perceiver()
        self._engines: dict[str, Engine] = {}
        self._rewriters: dict[tuple[str, str], PromptedRewriter] = {}
        self._defences: dict[tuple[str, str], Defence] = {}

    def open_all(self) -> None:
        """Open everything that is offered, so that a wrong spec is told before anybody comes.

        Raises:
            ConfigError: names what is wrong.
        """
        for spec in self.targets:
            self.target(spec)
        for spec in self.rewriters:
            self.rewriter(spec, target=self.targets[0])

    def target(self, spec: str) -> Engine:
        """The engine of that spec.

        Raises:
            ConfigError: not offered, or it cannot be opened.
        """
        self._check(spec, self.targets, "target")
        return _kept(self._engines, spec, lambda: open_engine(spec))

    def rewriter(self, spec: str, *, target: str) -> PromptedRewriter:
        """The rewriter of that spec.

        Args:
            spec: as of `vlmguard.rewriting.open_rewriter`.
            target: for the rewriter ``self``.

        Raises:
            ConfigError: not offered, or it cannot be opened.
        """
        self._check(spec, self.rewriters, "rewriter")
        own = self.target(target) if spec == "self" else None
        key = (spec, target if spec == "self" else "")
        return _kept(
            self._rewriters,
            key,
            lambda: open_rewriter(spec, target=own, perceiver=self.perceiver),
        )

    def defence(self, spec: str, *, target: str) -> Defence:
        """The defence of that spec, with nothing remembered of earlier requests.

        Args:
            spec: as of `vlmguard.defences.open_defence`; ``guard`` has the page's first rewriter.
            target: that it will defend.

        Raises:
            ConfigError: it cannot be opened.
        """
        if spec == Guard.name:
            rewriter = self.rewriter(self.rewriters[0], target=target)
            return Guard(rewriter, perceiver=self.perceiver, cache_size=0)
        engine = self.target(target)
        defence = _kept(
            self._defences,
            (spec, target),
            lambda: open_defence(spec, perceiver=self.perceiver, target=engine),
        )
        if isinstance(defence, Guard):
            return Guard(
                defence.rewriter, policy=defence.policy, perceiver=self.perceiver, cache_size=0
            )
        return defence

    async def aclose(self) -> None:
        """Free all models."""
        engines = [*self._engines.values(), *(each.engine for each in self._rewriters.values())]
        engines += [
            defence.rewriter.engine
            for defence in self._defences.values()
            if isinstance(defence, Guard) and isinstance(defence.rewriter, PromptedRewriter)
        ]
        await asyncio.gather(*(engine.aclose() for engine in engines))
        self.perceiver.close()

    def _check(self, spec: str, offered: Sequence[str], what: str) -> None:
        if not spec.strip():
            raise ConfigError(f"no {what} is chosen")
        if not self.any_model and spec not in offered:
            raise ConfigError(
                f"the {what} {spec!r} is not offered here; choose one of {', '.join(offered)}. "
                f"Whoever runs this page can add it: vlmguard ui --{what} {spec}"
            )


def _kept(known: dict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    if key not in known:
        known[key] = make()
    return known[key]
