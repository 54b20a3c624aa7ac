"""What no judge is asked about."""

from __future__ import annotations

from vlmguard.evals.types import Answer


def nothing_to_judge(answer: Answer) -> str | None:
    """Why there is nothing to score in an answer; ``None`` where there is."""
    if answer.error is not None:
        return f"there is no answer: {answer.error}"
    return "the answer is empty" if answer.empty else None
