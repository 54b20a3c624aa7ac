"""A chat-completions server in a thread: answers by words in the prompt and remembers each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(slots=True)
class Scripted:
    """The server's address, and what it was asked.

    Attributes:
        url: base URL.
        asked: text of the last message of every answered request, in order.
        bodies: those requests whole.
        delay_s: before every answer.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    delay_s: float = 0.0

    def spec(self, model: str = "brain") -> str:
        """The engine."""
        return f"openai:{model}@{self.url}?retries=0&vision=true"


def answer(text: str) -> tuple[int, str]:
    """Status and answer: some prompts fail, some are answered with nothing."""
    if "too long" in text:
        return 400, "this prompt is too long"
    if "overloaded" in text:
        return 503, "try again later"
    if "say nothing" in text:
        return 200, ""
    if "refuse" in text:
        return 200, "I'm sorry, but I can't help with that."
    return 200, f"Sure, here is how: {text}"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


@contextmanager
def scripted_server(
    delay_s: float = 0.0, says: Callable[[dict[str, Any]], str] | None = None
) -> Iterator[Scripted]:
    """Serve while in the context.

    Args:
        delay_s: before every answer.
        says: request → answer; without it, `answer` decides by the text.
    """
    state = Scripted(delay_s=delay_s)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = _text(body["messages"][-1]["content"])
            time.sleep(state.delay_s)
            status, said = answer(text) if says is None else (200, says(body))
            told: dict[str, Any] = {
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": said},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": len(text),
                    "completion_tokens": len(said),
                    "total_tokens": len(text) + len(said),
                },
            }
            if status != 200:
                told = {"error": {"message": said}}
            payload = json.dumps(told).encode()
            state.asked.append(text)
            state.bodies.append(body)
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
