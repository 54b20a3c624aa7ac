"""``vlmguard ask``: the guarded answer of a target, streamed; beside it the unguarded one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import RenderableType
from rich.live import Live

from vlmguard.cli.options import (
    AllowRemoteOption,
    DetectorsOption,
    ImageOption,
    JsonOption,
    PolicyOption,
    RewriterOption,
    TargetOption,
    open_guard,
    open_perceiver,
    open_target,
    read_prompt,
)
from vlmguard.cli.show import err, out, rewrite_panel, text_panel
from vlmguard.defences import Defence, Prepared, Preparing, open_defence, sighted_target
from vlmguard.engines import Engine, Sampling
from vlmguard.errors import ConfigError
from vlmguard.images import load_images
from vlmguard.perception import Perceiver
from vlmguard.types import Chat, Delta


def ask(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The user's prompt; - reads standard input.")
    ] = None,
    image: ImageOption = [],  # noqa: B006  # typer copies it
    target: TargetOption = None,
    rewriter: RewriterOption = None,
    policy: PolicyOption = "balanced",
    defence: Annotated[
        str | None,
        typer.Option(
            "--defence",
            help="Another defence than the guard; `vlmguard defence list` shows them.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the unguarded answer beside the guarded one.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="A system prompt for the target.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 300,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2)] = 0.0,
    detectors: DetectorsOption = None,
    allow_remote: AllowRemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model through the guard, or through another defence."""
    perceiver = open_perceiver(detectors)
    engine = open_target(target)
    chosen: Defence
    if defence is None:
        chosen = open_guard(rewriter, policy, perceiver, target=engine)
    else:
        _refuse_options_of_the_guard(context)
        chosen = open_defence(defence, perceiver=perceiver, target=engine)
    session = Session(
        defence=chosen,
        target=engine,
        perceiver=perceiver,
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature),
    )
    text = read_prompt(prompt, image)

    async def run() -> None:
        images = await load_images(image, allow_remote=allow_remote)
        chat = Chat.of(text, images, system=system)
        if as_json:
            typer.echo(json.dumps(await session.as_json(chat, compare=compare), ensure_ascii=False))
        else:
            await session.show(chat, compare=compare)

    asyncio.run(run())


def _refuse_options_of_the_guard(context: typer.Context) -> None:
    """``--rewriter`` and ``--policy`` would go unnoticed beside ``--defence``."""
    for option in ("rewriter", "policy"):
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(
                f"--{option} does not go with --defence; name both in it, as in "
                "--defence 'guard:REWRITER?policy=POLICY'"
            )


@dataclass(slots=True)
class Answer:
    """An answer as it grows."""

    title: str
    style: str
    text: str = ""
    done: bool = False

    async def follow(self, pieces: AsyncIterator[Delta]) -> None:
        """Collect a stream."""
        async with aclosing(pieces) as stream:  # type: ignore[type-var]  # engines yield generators
            async for piece in stream:
                self.text += piece.text
        self.done = True

    def panel(self) -> RenderableType:
        """The answer so far."""
        return text_panel(self.title, self.text + ("" if self.done else " ▌"), style=self.style)


@dataclass(kw_only=True)
class Session:
    """A defence before a target, shown to somebody."""

    defence: Defence
    target: Engine
    perceiver: Perceiver
    sampling: Sampling
    notes_shown: set[str] = field(default_factory=set)

    async def show(self, chat: Chat, *, compare: bool) -> None:
        """Print the decision, then stream the answer, or both answers side by side."""
        bare = Answer("Unguarded answer", "red")
        unguarded = asyncio.create_task(bare.follow(self._stream(chat))) if compare else None
        try:
            prepared = None
            if isinstance(self.defence, Preparing):
                with err.status("reviewing …"):
                    prepared = await self.defence.prepare(chat)
                self._show_notes(prepared.notes)
                if prepared.rewrites:
                    out.print(rewrite_panel(prepared.rewrites[-1]))
            title = "Guarded answer"
            if self.defence.name != "guard":
                title = f"Answer under {self.defence.name}"
            guarded = Answer(title, "green")
            answering = asyncio.create_task(self._answer(chat, prepared, guarded))
            await self._show_answers(guarded, answering, bare, unguarded)
        finally:
            if unguarded:
                unguarded.cancel()

    async def _show_answers(
        self,
        guarded: Answer,
        answering: asyncio.Task[None],
        bare: Answer,
        unguarded: asyncio.Task[None] | None,
    ) -> None:
        shown = [bare, guarded] if unguarded else [guarded]
        waiting = {answering, *([unguarded] if unguarded else [])}

        def view() -> RenderableType:
            if len(shown) == 1 or out.width < 80:
                return Columns([answer.panel() for answer in shown], width=out.width - 1)
            half = (out.width - 2) // 2
            return Columns([answer.panel() for answer in shown], width=half, padding=(0, 0))

        try:
            if out.is_terminal:
                with Live(view(), console=out, refresh_per_second=12) as live:
                    while waiting:
                        _, waiting = await asyncio.wait(waiting, timeout=0.08)
                        live.update(view())
            else:
                await asyncio.gather(*waiting)
                out.print(view())
            for task in (answering, unguarded):
                if task:
                    task.result()
        finally:
            answering.cancel()

    async def _answer(self, chat: Chat, prepared: Prepared | None, answer: Answer) -> None:
        """The defended answer: streamed where the defence only changed the input."""
        if prepared is None:
            reply = await self.defence.respond(chat, self.target, self.sampling)
            self._show_notes(reply.trace.notes)
            answer.text, answer.done = reply.completion.text, True
        elif prepared.refusal is not None:
            answer.text, answer.done = prepared.refusal, True
        else:
            await answer.follow(self._stream(prepared.chat))

    def _show_notes(self, notes: tuple[str, ...]) -> None:
        for note in notes:
            if note not in self.notes_shown:
                self.notes_shown.add(note)
                err.print(f"note: {note}", markup=False, style="dim")

    def _stream(self, chat: Chat) -> AsyncIterator[Delta]:
        target: Engine = self.target
        if chat.images:
            target, notes = sighted_target(target, self.perceiver)
            self._show_notes(notes)
        return target.stream(chat, self.sampling)

    async def as_json(self, chat: Chat, *, compare: bool) -> dict[str, object]:
        """The decision and the answers as JSON values."""
        start = time.perf_counter()
        reply = await self.defence.respond(chat, self.target, self.sampling)
        elapsed = (time.perf_counter() - start) * 1000
        rewrites = reply.trace.rewrites
        told: dict[str, object] = {
            "defence": self.defence.name,
            "rewrite": rewrites[-1].to_json() if rewrites else None,
            "answer": reply.completion.text,
            "target": reply.trace.target,
            "notes": list(reply.trace.notes),
            "added": {
                "calls": reply.trace.calls,
                "prompt_tokens": reply.trace.defence_usage.prompt_tokens,
                "completion_tokens": reply.trace.defence_usage.completion_tokens,
            },
            "timings_ms": {**reply.trace.timings_ms, "total": round(elapsed, 3)},
        }
        if compare:
            engine, _ = sighted_target(self.target, self.perceiver)
            told["unguarded"] = (await engine.generate(chat, self.sampling)).text
        return told
