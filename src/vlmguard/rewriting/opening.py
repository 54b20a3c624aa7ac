"""From a spec string to a rewriter: zero-shot, trained, or the target itself.

::

    smollm2                          the embedded rewriter: SmolLM2 with the shipped adapter
    smollm2?adapter=/my/adapter.gguf a trained adapter, by its path (with vlmguard.json beside it)
    hf:/models/vlm?adapter=/my/peft  likewise through transformers
    hf:/runs/full/adapter            fully tuned or merged, with vlmguard.json beside the weights
    openai:MODEL@URL                 any capable model, zero-shot
    openai:MODEL@URL?trained=FOLDER  a trained one behind a server; vlmguard.json is in the folder
    zero-shot:smollm2                the plain model under the zero-shot prompt
    self                             the target rewrites for itself
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from vlmguard.engines import Engine, EngineSpec, open_engine
from vlmguard.errors import ConfigError
from vlmguard.models import KNOWN
from vlmguard.perception import Perceiver
from vlmguard.prompts import load_prompt
from vlmguard.rewriting.metadata import METADATA_FILE, AdapterMetadata, check, load_metadata
from vlmguard.rewriting.rewriter import PromptedRewriter

DEFAULT_REWRITER = "smollm2"
_ZERO_SHOT = "zero-shot:"
_TRAINED_WINDOW_CHARS = 3000
"""Small models judge what is about as long as what they were trained on."""


def open_rewriter(
    spec: str | None = None, *, target: Engine | None = None, perceiver: Perceiver | None = None
) -> PromptedRewriter:
    """Open the rewriter that a spec names.

    Args:
        spec: see the module; ``None`` reads ``VLMGUARD_REWRITER`` and falls back on the embedded
            rewriter.
        target: the target's engine, for ``"self"``.
        perceiver: reads pictures for a rewriter that cannot see.

    Raises:
        ConfigError: malformed spec, ``"self"`` without a target, or an adapter that does not fit.
    """
    spec = spec or os.environ.get("VLMGUARD_REWRITER") or DEFAULT_REWRITER
    if spec == "self":
        if target is None:
            raise ConfigError("the rewriter 'self' is the target itself: name a target as well")
        return PromptedRewriter(target, perceiver=perceiver, name=f"self ({target.spec})")
    if spec.startswith(_ZERO_SHOT):
        engine = open_engine(spec.removeprefix(_ZERO_SHOT))
        return PromptedRewriter(engine, perceiver=perceiver, name=spec)
    parsed = EngineSpec.parse(spec)
    shipped = shipped_adapter(parsed.scheme)
    if "adapter" in parsed.options:
        metadata = load_metadata(Path(parsed.options["adapter"]))
    elif "trained" in parsed.options:
        metadata = load_metadata(Path(parsed.options["trained"]))
        options = {key: value for key, value in parsed.options.items() if key != "trained"}
        parsed = EngineSpec(scheme=parsed.scheme, value=parsed.value, options=options)
    elif shipped is not None:
        metadata = load_metadata(shipped)
        adapter = shipped / metadata.files["gguf"]
        options = {**parsed.options, "adapter": str(adapter)}
        parsed = EngineSpec(scheme=parsed.scheme, value=parsed.value, options=options)
    elif (beside := Path(parsed.value).expanduser() / METADATA_FILE).is_file():
        metadata = load_metadata(beside)
    else:
        return PromptedRewriter(open_engine(spec), perceiver=perceiver)
    return _trained(parsed, metadata, name=spec, perceiver=perceiver)


def shipped_adapter(base: str) -> Path | None:
    """The folder of the adapter that this package ships for an embedded model, if it does."""
    folder = Path(str(files("vlmguard.rewriting").joinpath("adapters", base)))
    return folder if (folder / METADATA_FILE).is_file() else None


def _trained(
    spec: EngineSpec, metadata: AdapterMetadata, *, name: str, perceiver: Perceiver | None
) -> PromptedRewriter:
    """A rewriter that is served as it was trained, or an error that says what differs."""
    prompt = load_prompt(metadata.prompt.package, metadata.prompt.file)
    known = KNOWN.get(spec.scheme)
    check(
        metadata,
        prompt_hash=prompt.hash,
        base_sha256=known.sha256 if known is not None else None,
    )
    return PromptedRewriter(
        open_engine(str(spec)),
        perceiver=perceiver,
        layout=metadata.layout,
        prompt=prompt,
        thresholds=metadata.thresholds,
        window_chars=_TRAINED_WINDOW_CHARS,
        identity=metadata.fingerprint,
        name=name,
    )
