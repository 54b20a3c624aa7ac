"""The command line as a user meets it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.drawing import encode, typed_text

SAFE = '{"verdict": "safe"}'
RISKY = (
    '{"verdict": "risky", "category": "violence", "textual": "asks how", "visual": "Nothing.",'
    ' "multimodal": "Nothing.", "prompt": "Explain why this is dangerous."}'
)


def vlmguard(
    *args: str, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vlmguard.cli.main", *args],
        input=stdin,
        capture_output=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "100", **env},
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def script(tmp_path: Path) -> str:
    """A scripted rewriter: risky where the prompt says "bad", safe otherwise."""
    path = tmp_path / "rewriter.json"
    path.write_text(json.dumps({"bad": RISKY, "*": SAFE}))
    return f"scripted:{path}"


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """A scripted target."""
    path = tmp_path / "target.json"
    path.write_text(json.dumps({"Explain why": "Because it hurts.", "*": "Certainly! Step one"}))
    return f"scripted:{path}"


@pytest.fixture
def png(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    path.write_bytes(encode(typed_text("hello")))
    return str(path)


# --- rewrite ---


def test_rewrite_shows_verdict_reasons_and_prompt(script: str) -> None:
    """What a person reads."""
    done = vlmguard("rewrite", "a bad thing", "--rewriter", script)
    assert done.returncode == 0, done.stderr
    for part in ("risky", "violence", "asks how", "Explain why this is dangerous."):
        assert part in done.stdout


def test_rewrite_json_has_the_stable_names(script: str) -> None:
    """What a program reads."""
    done = vlmguard("rewrite", "hello", "--rewriter", script, "--json")
    told = json.loads(done.stdout)
    assert told["verdict"] == "safe"
    assert told["prompt"] == "hello"
    assert told["changed"] is False
    assert told["policy"] == "balanced"
    assert set(told) >= {"id", "risk", "category", "action", "report", "evidence", "timings_ms"}


def test_the_environment_chooses_rewriter_and_policy(script: str) -> None:
    """As in a container."""
    done = vlmguard(
        "rewrite", "bad", "--json", VLMGUARD_REWRITER=script, VLMGUARD_POLICY="permissive"
    )
    told = json.loads(done.stdout)
    assert told["verdict"] == "risky"
    assert told["rewriter"] == script
    assert told["policy"] == "permissive"


def test_standard_input_is_a_prompt(script: str) -> None:
    """`-`, as in other tools; invalid UTF-8 is told, not mangled."""
    done = vlmguard("rewrite", "-", "--json", "-r", script, stdin="héllo\n".encode())
    assert json.loads(done.stdout)["prompt"] == "héllo"
    done = vlmguard("rewrite", "-", "--json", "-r", script, stdin=b"\xff\xfe")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr


def test_markup_in_a_prompt_is_text(script: str) -> None:
    """Rich's own tags and control sequences do not act."""
    done = vlmguard("rewrite", "[bold]x[/] [/nope] bad", "-r", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["rewrite"], 2, "give a prompt"),
        (["rewrite", ""], 2, "empty"),
        (["rewrite", "x", "--image", "missing.png"], 2, "missing.png"),
        (["rewrite", "x", "--image", "https://example.com/a.png"], 2, "--allow-remote"),
        (["rewrite", "x", "--rewriter", "gpt"], 2, "unknown engine 'gpt'"),
        (["rewrite", "x", "--rewriter", "smollm2?foo=1"], 2, "unknown option"),
        (["rewrite", "x", "--policy", "lax"], 2, "strict, balanced, permissive"),
        (["rewrite", "x", "--detectors", "nose"], 2, "unknown detector"),
        (["rewrite", "x", "--rewriter", "self"], 2, "name a target"),
        (["rewrite", "--input", "x.jsonl"], 2, "belong together"),
        (["rewrite", "--input", "nope.jsonl", "--output", "o.jsonl"], 2, "nope.jsonl"),
        (["rewrite", "x", "--frob"], 2, "--frob"),
        (["rewrite", "x", "-r", "llamacpp:/nowhere/model.gguf"], 2, "/nowhere/model.gguf"),
        (["rewrite", "x", "-r", "openai:m@http://127.0.0.1:9/v1?retries=0"], 1, "127.0.0.1:9"),
        (["policy", "check", "nope.yaml"], 2, "nope.yaml"),
    ],
)
def test_errors_are_one_line_with_a_code(args: list[str], code: int, told: str) -> None:
    """No traceback, the offending value, the fix."""
    done = vlmguard(*args)
    assert done.returncode == code, done.stderr
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_help_and_version() -> None:
    """Every command explains itself."""
    assert vlmguard("--version").stdout.startswith("vlmguard-r1 ")
    for command in ("rewrite", "ask", "demo", "policy", "pull", "models"):
        assert command in vlmguard("--help").stdout
        assert vlmguard(command, "--help").returncode == 0


# --- ask ---


def test_ask_answers_from_the_rewritten_prompt(script: str, echo: str) -> None:
    """The target never sees the original."""
    done = vlmguard("ask", "a bad thing", "-r", script, "-t", echo)
    assert done.returncode == 0, done.stderr
    assert "Because it hurts." in done.stdout
    assert "Certainly" not in done.stdout


def test_compare_shows_both_answers(script: str, echo: str) -> None:
    """Side by side."""
    done = vlmguard("ask", "a bad thing", "-r", script, "-t", echo, "--compare")
    assert "Unguarded answer" in done.stdout
    assert "Certainly!" in done.stdout
    assert "Because it hurts." in done.stdout


def test_ask_json_carries_decision_and_answers(script: str, echo: str) -> None:
    """For programs."""
    done = vlmguard("ask", "a bad thing", "-r", script, "-t", echo, "--compare", "--json")
    told = json.loads(done.stdout)
    assert told["answer"] == "Because it hurts."
    assert told["unguarded"].startswith("Certainly!")
    assert told["rewrite"]["verdict"] == "risky"
    assert told["timings_ms"]["total"] > 0


def test_a_refusing_policy_answers_with_its_own_words(
    script: str, echo: str, tmp_path: Path
) -> None:
    """And the target is not asked."""
    policy = tmp_path / "p.yaml"
    policy.write_text("default_action: refuse\nrefusal: Not here.\n")
    done = vlmguard("ask", "bad", "-r", script, "-t", echo, "-p", str(policy))
    assert "Not here." in done.stdout


def test_a_failing_rewriter_stops_the_request(echo: str, tmp_path: Path) -> None:
    """Closed by default: no answer slips out."""
    path = tmp_path / "garbage.json"
    path.write_text(json.dumps({"*": "lorem ipsum"}))
    done = vlmguard("ask", "hello", "-r", f"scripted:{path}", "-t", echo)
    assert done.returncode == 1
    assert "Certainly" not in done.stdout
    assert "no JSON object" in done.stderr


# --- policy ---


def test_policy_init_check_show(tmp_path: Path) -> None:
    """Written, valid, and shown in full; an existing file is not overwritten."""
    path = str(tmp_path / "policy.yaml")
    assert vlmguard("policy", "init", path).returncode == 0
    again = vlmguard("policy", "init", path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert "valid" in vlmguard("policy", "check", path).stdout
    shown = json.loads(vlmguard("policy", "show", path, "--json").stdout)
    assert shown["name"] == "my-policy"
    assert shown["actions"]["fraud"] == "rewrite"


# --- batch ---


def write_items(path: Path, items: list[Any]) -> None:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_text("\n".join(lines) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_reviewed_in_order_and_bad_lines_become_records(
    script: str, tmp_path: Path
) -> None:
    """One broken line does not stop the rest."""
    (tmp_path / "a.png").write_bytes(encode(typed_text("hello")))
    items = [
        {"id": "a", "prompt": "hello"},
        {"id": 7, "prompt": "a bad thing"},
        "{not json",
        {"prompt": "no id"},
        {"id": "gone", "prompt": "x", "images": ["missing.png"]},
        {"id": "odd", "prompt": 5},
        {"id": "pic", "prompt": "x", "images": ["a.png"]},
    ]
    write_items(tmp_path / "in.jsonl", items)
    done = vlmguard(
        "rewrite", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"),
        "-r", script, "--json", "--detectors", "none",
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"] == 3
    records = read(tmp_path / "out.jsonl")
    assert [record["id"] for record in records] == ["a", 7, 3, 4, "gone", "odd", "pic"]
    assert records[1]["verdict"] == "risky"
    assert "in.jsonl:3" in records[2]["error"]["message"]
    assert records[4]["error"]["type"] == "InputError"
    assert "prompt" in records[5]["error"]["message"]
    assert records[6]["verdict"] == "safe"


def test_a_second_run_does_only_what_is_missing(script: str, tmp_path: Path) -> None:
    """Also after a write that was cut off in the middle of a line."""
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_items(source, [{"id": str(n), "prompt": f"hello {n}"} for n in range(6)])
    args = ["rewrite", "--input", str(source), "--output", str(sink), "-r", script, "--json"]
    assert vlmguard(*args).returncode == 0
    whole = sink.read_bytes()
    lines = whole.splitlines(keepends=True)
    sink.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    told = json.loads(vlmguard(*args).stdout)
    assert (told["resumed"], told["reviewed"]) == (3, 3)
    assert [r["id"] for r in read(sink)] == [str(n) for n in range(6)]


def test_an_output_of_another_input_is_not_touched(script: str, tmp_path: Path) -> None:
    """Nothing is lost by a wrong file name."""
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_items(source, [{"id": "a", "prompt": "x"}])
    sink.write_text('{"id": "other"}\n')
    args = ["rewrite", "-r", script, "--input", str(source), "--output"]
    done = vlmguard(*args, str(sink))
    assert done.returncode == 2
    assert "does not belong" in done.stderr
    assert sink.read_text() == '{"id": "other"}\n'
    assert "overwrite" in vlmguard(*args, str(source)).stderr


def test_killed_and_interrupted_runs_go_on_where_they_were(tmp_path: Path) -> None:
    """SIGKILL, then SIGINT, then to the end: every line once, in order."""
    script = tmp_path / "slow.json"
    script.write_text(json.dumps({"*": SAFE}))
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_items(source, [{"id": n, "prompt": f"hello {n}"} for n in range(60)])
    args = ["rewrite", "--input", str(source), "--output", str(sink), "--concurrency", "2"]
    args += ["-r", f"scripted:{script}?delay_s=0.05"]
    for stop in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmguard.cli.main", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        before = sink.read_bytes().count(b"\n") if sink.exists() else 0
        deadline = time.monotonic() + 30
        while (sink.read_bytes().count(b"\n") if sink.exists() else 0) < before + 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(stop)
        _, stderr = process.communicate(timeout=20)
        assert b"Traceback" not in stderr
        if stop is signal.SIGINT:
            assert process.returncode == 130
    done = vlmguard(*args)
    assert done.returncode == 0, done.stderr
    assert [record["id"] for record in read(sink)] == list(range(60))
