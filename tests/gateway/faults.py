"""Servers that go wrong in every way that a socket allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from tests.gateway.common import COMPLETION
from vlmguard.gateway.audit import AuditQuery, AuditRecord, open_reader

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What a server does once it has read a request; the connection is closed afterwards."""


class FaultyServer:
    """Reads requests and answers each as `behaviour` says.

    Attributes:
        url: its base URL, with ``/v1``.
        asked: requests that reached it.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.url = ""
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"content-length: " in head:
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
            self.asked += 1
            await self.behaviour(writer)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def faulty(behaviour: Behaviour) -> AsyncIterator[FaultyServer]:
    """A server on a free port."""
    faulty = FaultyServer(behaviour)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await faulty.serve(reader, writer)
        tasks.discard(task)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    faulty.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield faulty
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def head(status: int = 200, kind: str = "application/json", length: int | None = None) -> bytes:
    """The head of a response; without a length it ends with the connection."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", "connection: close"]
    if length is not None:
        lines.append(f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def says(text: str) -> Behaviour:
    """A whole completion with that text."""
    choice = {"index": 0, "finish_reason": "stop"}
    message = {"role": "assistant", "content": text}
    data = json.dumps({**COMPLETION, "choices": [{**choice, "message": message}]}).encode()
    return sends(head(length=len(data)) + data)


def sends(data: bytes) -> Behaviour:
    """Bytes, then the end."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return behave


def hangs(data: bytes = b"") -> Behaviour:
    """Bytes, then silence."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await asyncio.sleep(60)

    return behave


async def resets(writer: asyncio.StreamWriter) -> None:
    """The process behind the connection dies."""
    writer.transport.abort()


def read_audit(path: Path) -> list[AuditRecord]:
    """All records of a log."""
    with closing(open_reader(path)) as reader:
        return list(reader.records(AuditQuery()))
