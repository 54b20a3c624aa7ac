"""Models of the Hugging Face Hub, from a small hub on the loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"---\nlicense: mit\ntags: [tiny]\n---\n# Tiny\n",
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"the same weights, as a pickle",
    "model-q4.gguf": b"the same weights, for another program",
}
REFUSED = {
    "gated": (403, "GatedRepo"),
    "gone": (404, "RepoNotFound"),
    "broken": (500, "Oops"),
}

# Settings of huggingface_hub are read at its import, so it runs in a process of its own.
DRIVER = """
import json, sys
from vlmguard.models import listing, pull
for name, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"path": str(pull(name, revision=revision))}))
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
print(json.dumps([row.to_json() for row in listing() if row.name.startswith("hf:")]))
"""


class _Hub(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """The parts of the Hub's API that a download uses."""
        path = urlsplit(self.path).path.strip("/")
        repo, _, rest = path.removeprefix("api/models/").removeprefix("org/").partition("/")
        if repo in REFUSED:
            status, code = REFUSED[repo]
            self._send(b"", status=status, headers={"X-Error-Code": code})
        elif repo != "tiny":
            self._send(b"", status=404)
        elif "nowhere" in rest:
            self._send(b"", status=404, headers={"X-Error-Code": "RevisionNotFound"})
        elif rest.startswith("tree/"):
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in FILES.items()
                ]
            )
        elif rest.startswith("resolve/"):
            data = FILES[rest.split("/", 2)[2]]
            self._send(data, headers={"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})
        else:
            siblings = [{"rfilename": name} for name in FILES]
            self._send_json({"id": "org/tiny", "sha": COMMIT, "siblings": siblings})

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _send(self, body: bytes, *, status: int = 200, headers: dict[str, str] = {}) -> None:  # noqa: B006 - never changed
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of the small hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def run(
    home: Path, endpoint: str, *pulls: tuple[str, str | None], **environment: str
) -> tuple[list[dict[str, str]], list[dict[str, Any]], str]:
    """What each pull gave, the listing afterwards, and standard error."""
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLMGUARD_HOME": str(home / "vlmguard"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(pulls)],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *results, listed = [json.loads(line) for line in done.stdout.splitlines()]
    return results, listed, done.stderr


def test_a_model_lands_in_the_hubs_cache(tmp_path: Path, endpoint: str) -> None:
    """Without the same weights in other formats; listed with licence and size; found offline."""
    ((result,), listed, shown) = run(tmp_path, endpoint, ("hf:org/tiny", None))
    folder = Path(result["path"])
    assert folder == tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    kept = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == kept
    assert listed == [
        {
            "name": "hf:org/tiny",
            "what": "from the Hugging Face Hub",
            "state": "here",
            "size": sum(len(FILES[name]) for name in kept),
            "licence": "mit",
            "source": "hf:org/tiny@0123456789ab",
            "path": str(folder),
            "problem": None,
        }
    ]
    assert "Fetching" not in shown  # no progress bars into a pipe
    (again, other), _, _ = run(
        tmp_path,
        "http://127.0.0.1:9",
        ("hf:org/tiny", None),
        ("hf:org/other", None),
        VLMGUARD_OFFLINE="1",
    )
    assert again == result
    assert other["error"] == "ModelStoreError"
    assert "VLMGUARD_OFFLINE" in other["message"]


def test_what_goes_wrong_is_said(tmp_path: Path, endpoint: str) -> None:
    """Each refusal of the Hub has its own words, with the way out."""
    cases = {
        ("hf:org/gated", None): "HF_TOKEN",
        ("hf:org/gone", None): "there is no public model hf:org/gone",
        ("hf:org/broken", None): "cannot fetch hf:org/broken",
        ("hf:org/tiny", "nowhere"): "has no revision 'nowhere'",
        ("hf:tiny", None): "not of the form hf:org/model",
        ("hf:", None): "not of the form hf:org/model",
        ("hf:org/ti ny", None): "not of the form hf:org/model",
    }
    results, listed, _ = run(tmp_path, endpoint, *cases)
    for result, words in zip(results, cases.values(), strict=True):
        assert words in result["message"]
        assert result["error"] in {"ModelStoreError", "ConfigError"}
    assert listed == []


def test_no_network_is_said(tmp_path: Path) -> None:
    """At once, not after minutes of retries."""
    ((result,), _, _) = run(tmp_path, "http://127.0.0.1:9", ("hf:org/tiny", None))
    assert result["error"] == "ModelStoreError"
    assert "Connection refused" in result["message"]
