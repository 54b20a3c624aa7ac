"""What Inspect loads by its entry point ``vlmguard``: provider, solver, scorer and tasks."""

from __future__ import annotations

from vlmguard.evals.inspect_provider import vlmguard
from vlmguard.evals.inspect_tasks import defended, judged, tasks

__all__ = ["defended", "judged", "tasks", "vlmguard"]
