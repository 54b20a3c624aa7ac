"""Traces: to a collector that really listens, and nothing at all without one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from vlmguard.errors import EngineTimeout, MissingExtra
from vlmguard.gateway.tracing import NoTracing, open_tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"Traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


class Collector:
    """An OTLP/HTTP collector."""

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                collector.received.append(ExportTraceServiceRequest.FromString(data))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    yield collector
    collector.close()


def test_spans_reach_the_collector_as_one_trace(collector: Collector) -> None:
    """The client's trace goes on through the gateway to the upstream."""
    tracing = open_tracing()
    onwards: dict[str, str] = {}
    with tracing.request("POST /v1/chat/completions", PARENT) as request:
        request.note(mode="enforce", key_id=None)
        with tracing.step("guard") as step:
            step.note(verdict="risky", risk=0.75, changed=True)
        with tracing.step("upstream"):
            tracing.carry(onwards)
    tracing.close()
    spans = collector.spans()
    whole, guard = spans["POST /v1/chat/completions"], spans["guard"]
    assert whole.trace_id.hex() == guard.trace_id.hex() == TRACE
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert guard.parent_span_id == whole.span_id
    assert onwards["traceparent"] == f"00-{TRACE}-{spans['upstream'].span_id.hex()}-01"
    facts = {fact.key: fact.value for fact in guard.attributes}
    assert facts["vlmguard.verdict"].string_value == "risky"
    assert facts["vlmguard.risk"].double_value == 0.75
    assert [fact.key for fact in whole.attributes] == ["vlmguard.mode"]
    resource = collector.received[0].resource_spans[0].resource
    named = {fact.key: fact.value.string_value for fact in resource.attributes}
    assert named["service.name"] == "vlmguard"


def test_a_failure_is_told_by_its_type_only(collector: Collector) -> None:
    """Its message may quote what somebody sent."""
    tracing = open_tracing()
    with pytest.raises(EngineTimeout), tracing.step("guard"):
        raise EngineTimeout("a secret prompt")
    tracing.close()
    span = collector.spans()["guard"]
    assert span.status.code == 2
    assert {fact.key: fact.value.string_value for fact in span.attributes} == {
        "error.type": "EngineTimeout"
    }
    assert b"secret" not in b"".join(item.SerializeToString() for item in collector.received)


def test_without_a_collector_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor when OpenTelemetry is switched off."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    tracing = open_tracing()
    assert isinstance(tracing, NoTracing)
    headers: dict[str, str] = {}
    with tracing.request("a", PARENT) as request, tracing.step("b") as step:
        request.note(mode="off")
        step.failed(ValueError())
        tracing.carry(headers)
    tracing.close()
    assert headers == {}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(open_tracing(), NoTracing)


def test_without_a_collector_opentelemetry_is_not_even_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes half a second."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # importing it would raise
    assert isinstance(open_tracing(), NoTracing)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingExtra, match="tracing needs"):
        open_tracing()
