"""A chat-completions server that answers as `tests.synthesis.brain` and logs every call.

python -m tests.synthesis.server PORT_FILE LOG_FILE DELAY_S MOST_FILE
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tests.synthesis.brain import stage_of, think


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What a request meets in place of an answer.

    Attributes:
        status: of the response; ``None`` never answers, 0 hangs up.
        retry_after: the header; empty sends none.
    """

    status: int | None
    retry_after: str = ""

    def response(self) -> bytes:
        body = b'{"error": {"message": "not now"}}'
        wait = f"retry-after: {self.retry_after}\r\n" if self.retry_after else ""
        head = f"HTTP/1.1 {self.status} No\r\n{wait}content-length: {len(body)}\r\n\r\n"
        return head.encode() + body


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The response to a request body."""
    messages = body["messages"]
    system = _text(messages[0]["content"]) if messages[0]["role"] == "system" else ""
    rest = [_text(message["content"]) for message in messages if message["role"] != "system"]
    text = think(system, rest)
    usage = {"prompt_tokens": sum(map(len, rest)) // 4, "completion_tokens": len(text) // 4}
    return {
        "id": "1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }


def _no_trouble(_: int) -> Trouble | None:
    return None


def _no_end() -> int:
    return sys.maxsize


async def serve(
    ready: Callable[[int], object],
    log: TextIO,
    delay_s: float,
    trouble: Callable[[int], Trouble | None] = _no_trouble,
    most: Callable[[], int] = _no_end,
) -> None:
    """Serve until killed. A log line: stage and answer; no two requests have the same.

    Args:
        ready: told the port.
        log: of answers.
        delay_s: before each response.
        trouble: number of a request, from 0 → what it meets, or ``None`` for an answer.
        most: answers that it gives before it waits until there may be more.
    """
    count = itertools.count()
    answered = 0

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                raw = await reader.readexactly(length)
                body = json.loads(raw)
                met = trouble(next(count))
                await asyncio.sleep(delay_s)
                if met is not None:
                    if met.status is None:
                        await reader.read()  # until the client has had enough
                        return
                    if met.status == 0:
                        return
                    writer.write(met.response())
                    await writer.drain()
                    continue
                while answered >= most() and not reader.at_eof():  # noqa: ASYNC110  # a file
                    await asyncio.sleep(0.002)
                if reader.at_eof():
                    return
                answered += 1
                response = json.dumps(answer(body)).encode()
                first = body["messages"][0]
                stage = stage_of(_text(first["content"]) if first["role"] == "system" else "")
                text = json.loads(response)["choices"][0]["message"]["content"]
                log.write(json.dumps([stage, text]) + "\n")
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%b" % (len(response), response)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    ready(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main(port_file: Path, log_file: Path, delay_s: float, most_file: Path) -> None:
    """Write the port to a file, then serve; the last file holds how many answers there may be."""

    def most() -> int:
        return int(most_file.read_text())

    with log_file.open("a", encoding="utf-8", buffering=1) as log:
        asyncio.run(serve(lambda port: port_file.write_text(str(port)), log, delay_s, most=most))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
