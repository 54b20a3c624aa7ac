"""Models of the Hugging Face Hub, in the Hub's own cache, where transformers finds them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from vlmguard.errors import ConfigError, MissingExtra, ModelStoreError
from vlmguard.models.index import redact
from vlmguard.models.store import is_offline

# Other formats of the same weights, which transformers does not load.
_SURPLUS = ("*.gguf", "*.onnx*", "onnx/*", "*.h5", "*.msgpack", "*.tflite", "original/*")
_PICKLES = ("*.bin", "*.pt", "*.pth")  # left out where there are safetensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One revision of a model in the Hub's cache.

    Attributes:
        repo: ``org/model``.
        commit: full hash.
        size: bytes on disk.
        licence: as its model card says; ``"unknown"`` without one.
        path: its folder.
    """

    repo: str
    commit: str
    size: int
    licence: str
    path: Path


def pull_from_hub(repo: str, revision: str | None, *, force: bool = False) -> Path:
    """The folder of a model, fetched with `huggingface_hub`, which resumes and shares its cache.

    Gated models need ``HF_TOKEN`` or ``hf auth login``; ``HF_ENDPOINT`` names a mirror.

    Raises:
        ConfigError: ``repo`` is not ``org/model``.
        MissingExtra: huggingface_hub is not installed.
        ModelStoreError: no such model or revision, gated, no network, no space.
    """
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - an optional dependency
        from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("pulling from the Hugging Face Hub", "hf") from error
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"hf:{repo} is not of the form hf:org/model")
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _explained(f"hf:{repo}", revision):
        offline, skip = is_offline(), [*_SURPLUS, *_PICKLES]
        if not offline:
            files = hub.HfApi().model_info(repo, revision=revision).siblings or []
            if not any(file.rfilename.endswith(".safetensors") for file in files):
                skip = list(_SURPLUS)
        folder = hub.snapshot_download(
            repo,
            revision=revision,
            ignore_patterns=skip,
            force_download=force and not offline,
            local_files_only=offline,
        )
    return Path(folder)


def cached_snapshots() -> tuple[Snapshot, ...]:
    """Every model in the Hub's cache, whoever brought it; empty without huggingface_hub."""
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return ()
    try:
        cache = hub.scan_cache_dir()
    except hub.CacheNotFound:
        return ()
    return tuple(
        _snapshot(repo.repo_id, revision.snapshot_path)
        for repo in sorted(cache.repos, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
        for revision in sorted(repo.revisions, key=lambda revision: revision.last_modified)
    )


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    import huggingface_hub.errors as hub  # noqa: PLC0415 - an optional dependency

    try:
        yield
    except hub.GatedRepoError as error:
        raise ModelStoreError(
            f"{name} is gated: accept its terms on its page, then set HF_TOKEN or run hf auth login"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelStoreError(f"{name} has no revision {revision!r}") from error
    except hub.RepositoryNotFoundError as error:
        raise ModelStoreError(
            f"there is no public model {name}. Check the name; a private one needs HF_TOKEN"
        ) from error
    except hub.LocalEntryNotFoundError as error:
        raise ModelStoreError(
            f"{name} is not here and VLMGUARD_OFFLINE is set. Unset it, or give a folder: "
            "hf:/path/to/model"
            if is_offline()
            else f"cannot fetch {name}: the connection was lost. Run it again to go on"
        ) from error
    except Exception as error:  # the Hub's HTTP client, and so its errors, vary by version
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelStoreError(
            f"cannot fetch {name}: {redact(why)}. Check the network, or give a folder: "
            "hf:/path/to/model"
        ) from error


def _snapshot(repo: str, folder: Path) -> Snapshot:
    return Snapshot(
        repo=repo,
        commit=folder.name,
        size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        licence=_licence(folder / "README.md"),
        path=folder,
    )


def _licence(card: Path) -> str:
    """The licence that a model card declares in its YAML head."""
    try:
        head = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text("utf-8", "replace"), re.DOTALL)
        declared = yaml.safe_load(head[1]) if head else None
    except (OSError, yaml.YAMLError):
        return "unknown"
    licence = declared.get("license") if isinstance(declared, dict) else None
    return str(licence) if licence else "unknown"
