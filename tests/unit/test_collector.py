"""A collector that is away, and one that speaks TLS only."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

from tests.fakes.authority import Authority
from tests.fakes.collector import Collector
from vmdriver.service.tls.keys import Side
from vmdriver.telemetry import collector

NOTHING = MetricsData([])


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")


def test_that_nothing_is_taken_is_told_once_and_that_it_is_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The exporter has a line of its own for each try, forever."""
    caplog.set_level(logging.INFO)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        metrics = collector.metrics_to(f"http://127.0.0.1:{port}")
        spans = collector.spans_to(f"http://127.0.0.1:{port}")
        for _ in range(3):
            assert metrics.export(NOTHING) is MetricExportResult.FAILURE
            spans.export([])
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [line.partition(":")[0] for line in told] == [
        "metrics are not sent",
        "traces are not sent",
    ]
    assert all(f"127.0.0.1:{port}, error code" in line for line in told)
    there = Collector(port)
    assert metrics.export(NOTHING) is MetricExportResult.SUCCESS
    assert "metrics are sent again; 3 times" in caplog.messages[-1]
    there.close()
    for each in (metrics, spans):
        each.shutdown()


def test_a_collector_with_tls_is_taken_for_its_certificate_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    keys = authority.issue("IP:127.0.0.1", Side.SERVER)
    pair = keys.key.read_bytes(), keys.certificate.read_bytes()
    there = Collector(credentials=grpc.ssl_server_credentials([pair]))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.ca))
    known = collector.metrics_to(there.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(other.ca))
    unknown = collector.metrics_to(there.url)
    plain = collector.metrics_to(there.url.replace("https:", "http:"))
    assert known.export(NOTHING) is MetricExportResult.SUCCESS
    assert unknown.export(NOTHING) is MetricExportResult.FAILURE
    assert plain.export(NOTHING) is MetricExportResult.FAILURE
    there.close()
    for each in (known, unknown, plain):
        each.shutdown()
