"""The model card: for people, from the same facts as ``vlmguard.json``."""

from __future__ import annotations

import yaml

from vlmguard.rewriting.metadata import AdapterMetadata

_METRICS = ("loss", "auc", "f1", "accuracy", "caught", "over_refusal")


def model_card(metadata: AdapterMetadata) -> str:
    """Markdown with the front matter of the Hugging Face Hub."""
    front = yaml.safe_dump(
        {
            "base_model": metadata.base.name,
            "library_name": "peft" if "peft" in metadata.files else "transformers",
            "tags": ["vlmguard", "safety", "guardrail", "prompt-rewriting"],
        },
        sort_keys=False,
    )
    rows = "\n".join(
        f"| {split} | " + " | ".join(_number(values.get(name)) for name in _METRICS) + " |"
        for split, values in metadata.figures.items()
    )
    thresholds = ", ".join(f"{name} {value:.3f}" for name, value in metadata.thresholds.items())
    sources = ", ".join(f"{name} ({count})" for name, count in metadata.data.sources.items())
    records = ", ".join(f"{count} {split}" for split, count in metadata.data.records.items())
    if metadata.data.variants:
        records += f"; {metadata.data.variants} other surfaces of training records, for the verdict"
    versions = ", ".join(f"{name} {value}" for name, value in metadata.versions.items())
    recipe = yaml.safe_dump(metadata.recipe, sort_keys=False, allow_unicode=True)
    eyes = "sees the pictures" if metadata.base.sighted else "reads evidence about the pictures"
    return f"""---
{front}---

# {metadata.name}

A VLMGuard-R1 rewriter: it judges a request to a vision-language model (prompt and picture
together), says why it is risky, and writes a safer prompt. It {eyes}.

- Base: `{metadata.base.name}` ({metadata.base.architecture}), sha256 `{metadata.base.sha256}`
- Layout: {metadata.layout}; system prompt `{metadata.prompt.file}` ({metadata.prompt.hash})
- Thresholds: {thresholds}

The guard checks layout, prompt and base against `vlmguard.json` when it loads the adapter.

## Figures

Loss is per weighted token. Caught is the share of risky requests flagged, over-refusal the share
of harmless ones; rows without a preset use the threshold 0.5.

| | {" | ".join(name.replace("_", "-") for name in _METRICS)} |
|---|{"---|" * len(_METRICS)}
{rows}

The thresholds were chosen on the validation split, so the rows named after presets are optimistic.

## Data

{sources}; used: {records}. Content hash `{metadata.data.sha256}`.

## How it was made

{metadata.created}, seed {metadata.seed}; {versions}.

```yaml
{recipe}```
"""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
