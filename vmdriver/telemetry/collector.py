"""To a collector of OpenTelemetry's, by gRPC."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

_log = logging.getLogger(__name__)
_THEIRS = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
_TELL_AGAIN_S = 3600.0
_LONGEST = 500
"""Of a reason, which is the collector's own words, too."""


class _Why(logging.Filter):
    """Keeps what exporters say instead of passing it on: with a collector that is away, some lines
    for every try.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, str] = {}
        """By what could not be sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never."""
        if record.levelno >= logging.ERROR and isinstance(record.args, tuple):
            what = str(next(iter(record.args), ""))
            self.of[what] = record.getMessage()[:_LONGEST]
        return False


_why = _Why()


class _Way:
    """Says in the log that a collector takes nothing, once and then each hour, and when it does
    again. `what`: exporters' own word for it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._failed, self._told_at = 0, 0.0
        _THEIRS.filters = [_why]  # theirs lets one of two through that look alike

    def tried(self, *, sent: bool) -> None:
        """Something was to be sent."""
        if sent and self._failed:
            text = "%s are sent again; %d times they were not, and are lost"
            _log.info(text, self._what, self._failed)
        self._failed = 0 if sent else self._failed + 1
        if sent:
            return
        now = time.monotonic()
        if self._failed == 1 or now - self._told_at > _TELL_AGAIN_S:
            why = _why.of.get(self._what, "")
            _log.warning("%s are not sent: %s", self._what, why)
            self._told_at = now


class _Metrics(OTLPMetricExporter):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._way = _Way("metrics")

    def export(self, *given: Any, **more: Any) -> MetricExportResult:
        result = super().export(*given, **more)
        self._way.tried(sent=result is MetricExportResult.SUCCESS)
        return result


class _Spans(OTLPSpanExporter):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._way = _Way("traces")

    def export(self, *given: Any, **more: Any) -> SpanExportResult:
        result = super().export(*given, **more)
        self._way.tried(sent=result is SpanExportResult.SUCCESS)
        return result


def metrics_to(url: str) -> OTLPMetricExporter:
    """The collector at http:// or https://."""
    return _Metrics(endpoint=url, insecure=_plain(url))


def spans_to(url: str) -> OTLPSpanExporter:
    """The same one, or another."""
    return _Spans(endpoint=url, insecure=_plain(url))


def _plain(url: str) -> bool:
    return urlsplit(url).scheme != "https"
