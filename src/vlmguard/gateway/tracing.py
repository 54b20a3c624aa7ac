"""Traces for OpenTelemetry: on when a collector is named in the environment, free otherwise.

The exporter reads the standard variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``…_HEADERS``,
``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER`` …). Spans hold names,
numbers and decisions, never what people sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from vlmguard.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Value = str | int | float | bool
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SERVICE = "vlmguard"


class Step(Protocol):
    """A span that is open."""

    def note(self, **facts: Value | None) -> None:
        """Attach facts as ``vlmguard.*``; ``None`` is left out."""
        ...

    def failed(self, error: Exception) -> None:
        """Mark it as failed, by the error's type; its message may quote what people sent."""
        ...


class Tracing(Protocol):
    """Opens spans. Spans opened inside one another are parent and child."""

    def request(
        self, name: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[Step, bool | None]:
        """The span of a whole request; continues the trace of its ``traceparent`` header."""
        ...

    def step(self, name: str) -> AbstractContextManager[Step, bool | None]:
        """The span of one step, e.g. ``"guard"``."""
        ...

    def carry(self, headers: MutableMapping[str, str]) -> None:
        """Add ``traceparent`` for the upstream's own spans."""
        ...

    def close(self) -> None:
        """Send what waits. Blocks for a few seconds at most: call it off the event loop."""
        ...


class _NoStep:
    def note(self, **facts: Value | None) -> None:
        """Nothing."""

    def failed(self, error: Exception) -> None:
        """Nothing."""


class NoTracing:
    """Where no collector is named: does nothing, and hands on nothing."""

    _nothing: AbstractContextManager[Step, None] = nullcontext(_NoStep())

    def request(
        self,
        name: str,  # noqa: ARG002  # the Protocol's
        headers: Mapping[str, str],  # noqa: ARG002
    ) -> AbstractContextManager[Step, bool | None]:
        """See `Tracing.request`."""
        return self._nothing

    def step(
        self,
        name: str,  # noqa: ARG002
    ) -> AbstractContextManager[Step, bool | None]:
        """See `Tracing.step`."""
        return self._nothing

    def carry(self, headers: MutableMapping[str, str]) -> None:
        """See `Tracing.carry`."""

    def close(self) -> None:
        """See `Tracing.close`."""


def open_tracing(*, exporter: SpanExporter | None = None) -> Tracing:
    """Tracing as the environment says.

    Args:
        exporter: where spans go; by default over OTLP/HTTP to the collector of the environment,
            and nowhere when there is none or ``OTEL_SDK_DISABLED`` is ``true``.

    Raises:
        MissingExtra: a collector is named, and OpenTelemetry is not installed.
    """
    named = any(os.environ.get(name) for name in _ENDPOINTS)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or (exporter is None and not named):
        return NoTracing()
    return _OpenTelemetry(exporter)


class _OpenTelemetry:
    """Spans of the SDK, sent in batches by a thread of its own."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        # Imported here: half a second that only those pay who trace.
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.resources import (  # noqa: PLC0415
                SERVICE_NAME,
                SERVICE_VERSION,
                Resource,
            )
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:  # pragma: no cover - tests run with the extra
            raise MissingExtra("tracing", "serve") from error
        self._trace = trace
        self._propagate = propagate
        ours = {SERVICE_VERSION: version("vlmguard-r1")}
        if "OTEL_SERVICE_NAME" not in os.environ:
            ours[SERVICE_NAME] = _SERVICE
        # A provider of our own: the global one belongs to whoever embeds the gateway.
        self._provider = TracerProvider(resource=Resource.create(ours), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("vlmguard.gateway", version("vlmguard-r1"))

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Step]:
        parent = self._propagate.extract({key.lower(): value for key, value in headers.items()})
        with self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield from _within(_SpanStep(span))

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            yield from _within(_SpanStep(span))

    def carry(self, headers: MutableMapping[str, str]) -> None:
        self._propagate.inject(headers)

    def close(self) -> None:
        self._provider.shutdown()


def _within(step: _SpanStep) -> Iterator[Step]:
    try:
        yield step
    except Exception as error:
        step.failed(error)
        raise


class _SpanStep:
    def __init__(self, span: Span) -> None:
        self._span = span

    def note(self, **facts: Value | None) -> None:
        for name, value in facts.items():
            if value is not None:
                self._span.set_attribute(f"vlmguard.{name}", value)

    def failed(self, error: Exception) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(StatusCode.ERROR)
