"""Every error this package raises on purpose.

::

    VLMGuardError
    ├ ConfigError            a setting, a spec string or a policy is wrong
    │ ├ UnknownName          no engine, policy, detector … of that name
    │ └ MissingExtra         an optional dependency is not installed
    ├ InputError             what the user gave cannot be used (image, prompt, file)
    ├ ModelStoreError        a model file is missing, corrupt or cannot be fetched
    ├ EngineError            a model did not answer
    │ ├ EngineTimeout        it took too long                       (retryable)
    │ ├ EngineUnavailable    not reachable, overloaded, 429, 5xx    (retryable)
    │ ├ EngineRejected       it refused the request: 4xx, too long
    │ └ UnsupportedCapability  asked for something that it cannot do
    ├ PerceptionError        a detector failed, so a picture was not fully inspected
    ├ OutputError            a model answered, but not in the agreed form
    │ ├ RewriteParseError
    │ └ StageParseError      a stage of the synthesis pipeline got no usable answer
    ├ StoreError             a synthesis store cannot be read or written
    ├ RunStopped             a synthesis run gave up, since too much of it failed
    ├ AuditError             an audit log cannot be read or written
    └ DataError              a line of a data file is wrong

Messages are written for the person who reads them: what is wrong, with which
value, and how to fix it. They are translated once by the CLI (one line and an
exit code) and once by the gateway (an OpenAI error body).
"""

from __future__ import annotations

from pathlib import Path


class VLMGuardError(Exception):
    """Base of everything raised on purpose. ``str(error)`` is fit to be shown to a user."""


class ConfigError(VLMGuardError):
    """A setting, spec string or policy is wrong."""


class UnknownName(ConfigError):
    """Nothing is registered under that name; the message lists what there is."""


class MissingExtra(ConfigError):
    """An optional dependency is needed and not installed.

    Args:
        feature: what the user wanted, e.g. ``"the llama.cpp engine"``.
        extra: the extra of this distribution that brings it, e.g. ``"local"``.
    """

    def __init__(self, feature: str, extra: str) -> None:
        self.feature = feature
        self.extra = extra
        super().__init__(
            f"{feature} needs an optional dependency. Install it with: "
            f"pip install 'vlmguard-r1[{extra}]'"
        )


class InputError(VLMGuardError):
    """What the user gave cannot be used: e.g. an undecodable image."""


class ModelStoreError(VLMGuardError):
    """A model file is missing, corrupt or cannot be fetched."""


class EngineError(VLMGuardError):
    """A model did not answer.

    Attributes:
        retryable: whether the same request may succeed later.
    """

    retryable: bool = False


class EngineTimeout(EngineError):
    """The model took longer than allowed."""

    retryable = True


class EngineUnavailable(EngineError):
    """The server cannot be reached, is overloaded, or failed (429, 5xx)."""

    retryable = True


class EngineRejected(EngineError):
    """The server understood the request and refused it (4xx).

    Attributes:
        context_exceeded: the prompt was longer than the model's context window.
        status: the HTTP status, where there was one.
    """

    def __init__(
        self, message: str, *, context_exceeded: bool = False, status: int | None = None
    ) -> None:
        self.context_exceeded = context_exceeded
        self.status = status
        super().__init__(message)


class UnsupportedCapability(EngineError):
    """The engine was asked for something that it cannot do (vision, logprobs, …)."""


class PerceptionError(VLMGuardError):
    """A detector failed, so a picture was not fully inspected."""


class OutputError(VLMGuardError):
    """A model answered, but not in the agreed form.

    Attributes:
        raw: the model's text, untouched.
    """

    def __init__(self, message: str, *, raw: str) -> None:
        self.raw = raw
        super().__init__(message)


class RewriteParseError(OutputError):
    """A rewriter's answer is not a rewrite."""


class StageParseError(OutputError):
    """A model's answer to a stage of the synthesis pipeline is not usable, repair included."""


class StoreError(VLMGuardError):
    """A synthesis store cannot be used: another version, damaged, or the disk is full."""


class RunStopped(VLMGuardError):
    """A synthesis run gave up, since too much of it failed. What was done is stored."""


class AuditError(VLMGuardError):
    """An audit log cannot be used: missing, another version's, damaged, or the disk is full."""


class DataError(VLMGuardError):
    """A line of a data file is wrong.

    Args:
        message: what is wrong.
        path: the file.
        line: its line, counted from 1; ``None`` for the file as a whole.
    """

    def __init__(self, message: str, *, path: Path, line: int | None = None) -> None:
        self.path = path
        self.line = line
        where = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {message}")
