"""All of it, from the begin to the end of a driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import REGISTRY

from vmdriver.errors import ConfigError
from vmdriver.host.threads import alone
from vmdriver.telemetry import loop_lag
from vmdriver.telemetry.collector import metrics_to, spans_to
from vmdriver.telemetry.exposition import Exposition
from vmdriver.telemetry.gauges import Gauges, Look
from vmdriver.telemetry.listen import parse_listen
from vmdriver.telemetry.readers import Scraped, Sent

_log = logging.getLogger(__name__)
_END_MS = 1000


class Telemetry:
    """`listen`: where Prometheus may ask, or "". `otlp_endpoint`: URL of a collector that is sent
    metrics and spans by gRPC, or "". `instance`, `version`: of the driver, which is a `service`.
    """

    def __init__(
        self,
        *,
        listen: str,
        otlp_endpoint: str,
        instance: str,
        version: str,
        service: str = "vmdriver",
    ) -> None:
        self._listen, self._endpoint = listen, otlp_endpoint
        attributes = {
            "service.name": service,
            "service.instance.id": instance,
            "service.version": version,
        }
        self._resource = Resource.create(attributes)
        self._exposition: Exposition | None = None
        self._gauges: Gauges | None = None
        self._lag: asyncio.Task[None] | None = None
        self._metrics: MeterProvider | None = None
        self._traces: TracerProvider | None = None

    def start(self, look: Look) -> None:
        """Once in a process. ConfigError where nobody can listen there."""
        readers: list[MetricReader] = []
        self._gauges = Gauges(look, self._resource)
        if self._listen:
            self._expose()
            readers.append(Scraped(self._gauges))
        if self._endpoint:
            readers.append(Sent(metrics_to(self._endpoint), self._gauges))
            self._export_spans()
        self._metrics = MeterProvider(readers, self._resource, shutdown_on_exit=False)
        metrics.set_meter_provider(self._metrics)
        self._lag = asyncio.create_task(loop_lag.measure(), name="loop lag")

    async def close(self) -> None:
        """What is not sent yet is sent, for a second; in other threads, whom it may hold up. From
        the first moment nobody looks at the driver any more.
        """
        if self._gauges is not None:
            self._gauges.end()
        if self._lag is not None:
            self._lag.cancel()
        works: list[Callable[[], object]] = []
        if self._exposition is not None:
            works.append(self._exposition.close)
        if self._metrics is not None:
            works.append(partial(self._metrics.force_flush, _END_MS))
        if self._traces is not None:
            works.append(partial(self._traces.force_flush, _END_MS))
        ends = (alone("telemetry", work) for work in works)
        for failed in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(failed, Exception):
                _log.info("not all metrics and traces could be sent: %s", failed)

    def _expose(self) -> None:
        try:
            self._exposition = Exposition(parse_listen(self._listen), REGISTRY)
        except OSError as error:
            raise ConfigError(
                f"metrics_listen: {self._listen}: {error.strerror or error}",
                resolution="name a port that nobody else has, or a path in a folder that is there",
            ) from error
        _log.info("metrics are served on %s", self._listen)

    def _export_spans(self) -> None:
        exporter = spans_to(self._endpoint)
        self._traces = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(self._traces)
        _log.info("metrics and traces are sent to %s", self._endpoint)
