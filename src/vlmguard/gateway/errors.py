"""Errors as OpenAI's clients expect them: a status and ``{"error": {message, type, param, code}}``.

This is the gateway's one place where errors of the package become HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    InputError,
    ModelStoreError,
    OutputError,
    PerceptionError,
    UnsupportedCapability,
    VLMGuardError,
)


class ApiError(VLMGuardError):
    """What a client is told instead of an answer.

    Args:
        status: HTTP status.
        message: what is wrong, with which value, and the fix.
        code: for programs, e.g. ``"guard_failed"``.
        param: the field of the request that is wrong, as ``messages[0].content``.
        kind: OpenAI's ``type``; by default it follows from the status.
        headers: further response headers, e.g. ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind or _KINDS.get(status) or ("server_error" if status >= 500 else _BAD)
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self) -> bytes:
        """The JSON body."""
        return orjson.dumps(
            {
                "error": {
                    "message": str(self),
                    "type": self.kind,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


_BAD = "invalid_request_error"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def bad_field(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, f"{param}: {message}", code=code, param=param)


def uninspected(param: str, what: str) -> ApiError:
    """A 400 for content that the guard cannot look into."""
    return ApiError(
        400,
        f"{param}: {what} is not inspected by the guard, so it is not passed on. Leave it out, or "
        "ask the operator to list it under allow_uninspected",
        code="uninspected_content",
        param=param,
    )


def route_not_allowed(method: str, path: str, fix: str) -> ApiError:
    """A 404 for a route that could lead to the model past the guard."""
    return ApiError(
        404,
        f"{method} {path:.200} is not served here: only what the guard can review is passed on. "
        f"{fix}",
        code="route_not_allowed",
    )


def guard_failed(error: Exception) -> ApiError:
    """The guard could not decide, and the policy is closed.

    The error's own words name hosts and files of the operator: they are for the log.
    """
    reason = next((words for kind, words in _WHY if isinstance(error, kind)), "it broke")
    return ApiError(
        503,
        f"The guard could not review this request, so it was not passed on: {reason}",
        code="guard_failed",
        kind="server_error",
        headers={"retry-after": "1"},
    )


_WHY: tuple[tuple[type[Exception], str], ...] = (
    (EngineTimeout, "its rewriter took too long"),
    (EngineUnavailable, "its rewriter is not available"),
    (EngineRejected, "its rewriter refused the request"),
    (OutputError, "its rewriter answered in a form that cannot be read"),
    (PerceptionError, "a picture could not be inspected fully"),
    (ModelStoreError, "its model cannot be loaded"),
    (ConfigError, "it is not configured correctly"),
)


def as_api_error(error: VLMGuardError) -> ApiError:
    """What an error of the package means to a client."""
    if isinstance(error, ApiError):
        return error
    status, code = next(
        ((status, code) for kind, status, code in _STATUS if isinstance(error, kind)),
        (502, "target_failed"),
    )
    if isinstance(error, EngineRejected) and error.context_exceeded:
        code = "context_length_exceeded"
    return ApiError(status, str(error), code=code)


_STATUS: tuple[tuple[type[VLMGuardError], int, str], ...] = (
    (InputError, 400, "invalid_input"),
    (UnsupportedCapability, 400, "unsupported_by_target"),
    (EngineRejected, 400, "rejected_by_target"),
    (EngineTimeout, 504, "target_timeout"),
    (EngineUnavailable, 502, "target_unavailable"),
    (ConfigError, 500, "misconfigured"),
)
