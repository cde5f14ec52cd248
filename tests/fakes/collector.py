"""A collector of OpenTelemetry's: takes metrics and spans by gRPC, and keeps their names."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2_grpc as metrics_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc


class Collector:
    """Listens from now on; `spans` are names with their attributes. `credentials`: by TLS alone."""

    def __init__(
        self, port: int = 0, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self.metrics: set[str] = set()
        self.spans: list[tuple[str, dict[str, str]]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        metrics_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)
        traces_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)
        address = f"127.0.0.1:{port}"
        if credentials is not None:
            self.port = self._server.add_secure_port(address, credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._scheme = "http" if credentials is None else "https"
        self._server.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.stop(0.2).wait()
        for thread in threading.enumerate():  # gRPC's own, which it does not join
            if "cancel_all_calls_after_grace" in thread.name:
                thread.join()


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self._collector.metrics.update(m.name for m in scope.metrics)
        return metrics.ExportMetricsServiceResponse()


class _Traces(traces_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {a.key: a.value.string_value for a in span.attributes}
                    self._collector.spans.append((span.name, attributes))
        return traces.ExportTraceServiceResponse()
