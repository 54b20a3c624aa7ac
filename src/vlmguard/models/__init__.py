"""The model store: models that are known by name, pulled once, checked by hash."""

from __future__ import annotations

from pathlib import Path

from vlmguard.errors import UnknownName
from vlmguard.models import notices
from vlmguard.models.known import KNOWN, KnownModel
from vlmguard.models.store import checked_path, pull_known, store_dir

__all__ = ["KNOWN", "KnownModel", "ensure", "store_dir"]


def ensure(name: str) -> Path:
    """The file of a known model, pulled on first use after saying so on standard error.

    Blocks while it pulls: call it through `asyncio.to_thread`.

    Raises:
        UnknownName: no model of that name.
        ModelStoreError: damaged, or it cannot be fetched; names the fix.
    """
    try:
        model = KNOWN[name]
    except KeyError:
        raise UnknownName(f"unknown model {name!r}; known: {', '.join(sorted(KNOWN))}") from None
    if path := checked_path(model):
        return path
    notices.say(
        f"{name} is not here yet: pulling {notices.megabytes(model.source.size)} "
        f"({model.licence}) …"
    )
    return pull_known(model)
