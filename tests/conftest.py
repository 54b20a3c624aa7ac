"""What all tests share."""

from __future__ import annotations

import os

# Before anything imports transformers or huggingface_hub: tests never reach out to a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A developer's own settings do not change what tests see.
for _name in ("VLMGUARD_TARGET", "VLMGUARD_REWRITER", "VLMGUARD_POLICY", "OPENAI_API_KEY"):
    os.environ.pop(_name, None)
