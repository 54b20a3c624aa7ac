"""``/health/ready`` tells the truth: models that load or cannot, servers that are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import write_adapter
from tests.gateway.common import Rules, Running, running
from tests.gateway.faults import Behaviour, faulty, head, resets, says, sends
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ModelStoreError
from vlmguard.gateway.breaker import Breaker
from vlmguard.gateway.readiness import Loading

Told = tuple[int, str, dict[str, str]]


async def told(gate: Running) -> Told:
    """Status code, status and problems."""
    response = await gate.http.get("/health/ready")
    body = response.json()
    return response.status_code, body["status"], body["problems"]


async def until(gate: Running, wanted: Callable[[Told], bool]) -> Told:
    """What it tells, once it tells that."""
    async with asyncio.timeout(60):
        while not wanted(found := await told(gate)):  # noqa: ASYNC110  # as a prober does
            await asyncio.sleep(0.01)
    return found


async def settled(gate: Running) -> Told:
    """What it tells once nothing is being loaded any more."""
    return await until(gate, lambda found: "is being loaded" not in found[2].values())


class Loadable(Rules):
    """Rules whose model is loaded as the test says."""

    def __init__(self, loading: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.loading = loading

    async def load(self) -> None:
        await self.loading()


async def test_a_model_that_is_still_being_loaded() -> None:
    """503 and the part, until it is there."""
    there = asyncio.Event()

    async def load() -> None:
        await there.wait()

    async with running(Loadable(load)) as gate:
        assert await told(gate) == (503, "not ready", {"rewriter": "is being loaded"})
        there.set()
        assert await until(gate, lambda found: found[0] == 200) == (200, "ok", {})


@pytest.mark.parametrize("error", [ModelStoreError("/secret/path is damaged"), OSError("odd")])
async def test_a_model_that_cannot_be_loaded(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503 with the kind of error, its words once in the log; it is tried again until it works."""
    monkeypatch.setattr("vlmguard.gateway.gateway.Loading", partial(Loading, retry_s=0.01))
    attempts, broken = 0, True

    async def load() -> None:
        nonlocal attempts
        attempts += 1
        if broken:
            raise error

    with caplog.at_level(logging.INFO, "vlmguard"):
        async with running(Loadable(load), engine=ScriptedEngine(["Hello."])) as gate:
            found = await until(gate, lambda _: attempts >= 3)
            why = f"cannot be loaded ({type(error).__name__}; see the log)"
            assert found == (503, "not ready", {"rewriter": why})
            broken = False
            await until(gate, lambda found: found == (200, "ok", {}))
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "rewriter cannot be loaded" in line]) == 1
    assert "the rewriter is loaded now" in said


class Unloadable(ScriptedEngine):
    """A target whose weights are gone."""

    async def load(self) -> None:
        raise ModelStoreError("gone")


async def test_a_target_in_this_process_that_cannot_be_loaded() -> None:
    """It is told apart from the rewriter, and no mode answers without it."""
    for mode in ("enforce", "off"):
        async with running(engine=Unloadable(["x"]), mode=mode) as gate:
            found = await settled(gate)
            why = "cannot be loaded (ModelStoreError; see the log)"
            assert found == (503, "not ready", {"target": why})


async def test_an_adapter_that_does_not_fit(tmp_path: Path, smollm2_file: Path) -> None:
    """A real one, of a model of another width: llama.cpp refuses it, and so does readiness."""
    adapter = write_adapter(tmp_path / "other.gguf", seed=1, hidden=64)
    spec = f"zero-shot:llamacpp:{smollm2_file}?ctx=256&parallel=1&threads=1&adapter={adapter}"
    async with running(rewriter=spec, detectors="none") as gate:
        found = await settled(gate)
        assert found[:2] == (503, "not ready")
        assert found[2]["rewriter"].startswith("cannot be loaded (")
        assert str(tmp_path) not in str(found)


SERVERS: dict[str, tuple[Behaviour, str]] = {
    "gone": (resets, "cannot be reached"),
    "starting": (sends(head(503, length=2) + b"{}"), "answers with status 503"),
    "another key": (sends(head(401, length=2) + b"{}"), "refuses the gateway's key"),
}


@pytest.mark.parametrize("part", ["target", "rewriter"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_servers_behind_the_gateway(
    kind: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is gone, starts, or does not take our key is named, before anybody asks it."""
    monkeypatch.setenv("A_KEY", "of-ours")
    behaviour, why = SERVERS[kind]
    async with faulty(behaviour) as server:
        settings: Any = {part: f"openai:m@{server.url}?key_env=A_KEY"}
        async with running(**settings) as gate:
            wanted: Told = (503, "not ready", {part: why})
            assert await until(gate, lambda found: found == wanted)
            server.behaviour = says("no list of models, but an answer")
            assert await until(gate, lambda found: found == (200, "ok", {}))


POLICIES = {"closed": (503, "not ready"), "open": (200, "degraded")}


@pytest.mark.parametrize("on_failure", POLICIES)
async def test_an_open_breaker(
    on_failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewriter that keeps failing: not ready where requests fail for it, else degraded."""
    monkeypatch.setattr("vlmguard.gateway.gateway.Breaker", partial(Breaker, failures=2))
    policy = tmp_path / "p.yaml"
    policy.write_text(f"name: p\non_failure: {on_failure}\n")
    async with (
        faulty(resets) as server,
        running(rewriter=f"openai:r@{server.url}?retries=0", policy=str(policy)) as gate,
    ):
        for number in range(2):
            await gate.chat(f"hi {number}")
        why = "has failed repeatedly and is left alone for a moment"
        assert await told(gate) == (*POLICIES[on_failure], {"rewriter": why})


@pytest.mark.parametrize("mode", ["shadow", "off"])
async def test_without_enforcement_the_rewriter_stops_nothing(mode: str) -> None:
    """Requests pass without it, so the gateway stays among those that are asked; it is told."""

    async def load() -> None:
        raise ModelStoreError("gone")

    async with running(Loadable(load), mode=mode) as gate:
        found = await settled(gate)
        why = "cannot be loaded (ModelStoreError; see the log)"
        assert found == (200, "degraded", {"rewriter": why})
        assert (await gate.chat("hi")).status_code == 200


async def test_a_rewriter_that_was_never_there_is_no_open_failure(tmp_path: Path) -> None:
    """Else a rollout with a broken one would go through under an open policy, unguarded."""
    policy = tmp_path / "p.yaml"
    policy.write_text("name: p\non_failure: open\n")

    async def load() -> None:
        raise ModelStoreError("gone")

    async with running(Loadable(load), policy=str(policy)) as gate:
        found = await settled(gate)
        assert found[:2] == (503, "not ready")


async def test_another_defence_needs_no_rewriter() -> None:
    """Nothing is loaded for it, and nothing is missed."""
    async with running(defence="self-reminder", rewriter="smollm2") as gate:
        assert await told(gate) == (200, "ok", {})
