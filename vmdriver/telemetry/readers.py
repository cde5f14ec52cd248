"""OpenTelemetry's readers, which pass on what is seen of a driver beside what was counted."""

from __future__ import annotations

from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricsData,
    PeriodicExportingMetricReader,
)

from vmdriver.telemetry.gauges import Gauges


class Scraped(PrometheusMetricReader):
    """For Prometheus: collects when it is asked."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        # Which scope of ours a metric is of is nothing to tell series apart by.
        super().__init__(scope_info_enabled=False)

    def _receive_metrics(
        self, metrics_data: MetricsData, *args: Any, **more: Any
    ) -> None:
        super()._receive_metrics(self._gauges.beside(metrics_data), *args, **more)


class Sent(PeriodicExportingMetricReader):
    """For a collector: each minute."""

    def __init__(self, exporter: MetricExporter, gauges: Gauges) -> None:
        self._gauges = gauges
        super().__init__(exporter)

    def _receive_metrics(
        self, metrics_data: MetricsData, *args: Any, **more: Any
    ) -> None:
        super()._receive_metrics(self._gauges.beside(metrics_data), *args, **more)
