"""``vlmguard serve`` in a process of its own, and the stub behind it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.gateway.common import Upstream

SCRIPT = {
    "bad": json.dumps(
        {
            "verdict": "risky",
            "category": "violence",
            "textual": "t",
            "visual": "v",
            "multimodal": "m",
            "prompt": "safe good",
        }
    ),
    "*": '{"verdict": "safe"}',
}


class Process:
    """A running ``vlmguard serve``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""
        self.url = ""

    async def until(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its standard error."""
        assert self.process.stderr is not None
        async with asyncio.timeout(100):  # starting takes long on a busy machine
            while True:
                line = (await self.process.stderr.readline()).decode()
                self.said += line
                if found := re.search(pattern, line):
                    return found
                assert line, self.said

    async def end(self, within_s: float = 60) -> int:
        """Its exit status, once it has ended; reads what it says until then."""
        assert self.process.stderr is not None
        async with asyncio.timeout(within_s):
            self.said += (await self.process.stderr.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def serving(
    tmp_path: Path, *flags: str, until: str = "startup complete", **environment: str
) -> AsyncIterator[Process]:
    """A process with a scripted rewriter, on a port that is free."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vlmguard.cli.main", "serve", "--port", "0"),
        *("--rewriter", f"scripted:{script}", *flags),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    running = Process(process)
    try:
        running.url = (await running.until(r"gateway on (http\S+)/v1"))[1]
        if until not in running.said:
            await running.until(until)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def stub() -> AsyncIterator[tuple[Upstream, str]]:
    """An upstream, and the spec that names it."""
    upstream = Upstream()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", upstream.handle)
    async with TestServer(app) as server:
        yield upstream, f"openai:stub@{server.make_url('/v1')}"


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}
