"""OpenTelemetry's instruments, exporting to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from celery import signals
from opentelemetry import metrics
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

_reader: Any = None
_record: Any = None


class FileExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            _record("span", json.loads(span.to_json()))
        return SpanExportResult.SUCCESS


def set_up(record: Callable[[str, Any], None]) -> None:
    global _record
    _record = record
    # A pool's children each by themselves, as OpenTelemetry's guide says; a pool of threads has
    # none, and neither has the caller.
    signals.worker_process_init.connect(start, weak=False)
    signals.worker_process_shutdown.connect(flush, weak=False)
    if os.environ["PROGRAM_POOL"] == "threads":
        signals.worker_init.connect(start, weak=False)
        signals.worker_shutdown.connect(flush, weak=False)


def start(**kwargs: Any) -> None:
    global _reader
    _reader = InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([_reader]))
    CeleryInstrumentor().instrument()


def flush(**kwargs: Any) -> None:
    found = _reader.get_metrics_data()
    if found is not None:
        _record("metrics", json.loads(found.to_json()))
