"""The guard inside vLLM's server, which adds middleware by name and without arguments.

``PYTHONPATH=examples/integrations vllm serve MODEL --middleware vllm_guard.Guarded``
"""

from __future__ import annotations

from vlmguard.integrations.asgi import App, VLMGuardMiddleware


class Guarded(VLMGuardMiddleware):
    """The middleware with settings for vLLM."""

    def __init__(self, app: App) -> None:
        super().__init__(
            app,
            policy="balanced",
            allow_routes=("GET /health", "GET /ping", "GET /version", "GET /metrics"),
        )
