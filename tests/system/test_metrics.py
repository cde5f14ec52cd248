"""A driver's metrics as Prometheus reads them, and what a collector of OpenTelemetry's is sent."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.collector import Collector
from tests.fakes.waiting import until
from tests.system.machines import Driver, Host
from tests.system.stage import WITHOUT_TEMPLATES


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(path: Path) -> Samples:
    client = _Unix(path)
    client.request("GET", "/metrics", headers={"Host": "localhost"})
    text = client.getresponse().read().decode()
    client.close()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of those that have these labels."""
    wanted = set(labels.items())
    return sum(v for (n, own), v in samples.items() if n == name and wanted <= own)


def test_a_life_is_seen_by_prometheus_and_by_a_collector(
    new_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    path, collector = tmp_path / "m", Collector()
    options = ("--metrics-listen", f"unix:{path}", "--otlp-endpoint", collector.url)
    driver = new_driver(*options)
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    driver.gateway.shell(sandbox, "head -c 3000000 /dev/urandom > /tmp/x; sync")

    def used() -> bool:
        found = scraped(path)
        cpu = value(found, "vmdriver_machine_cpu_time_seconds_total", sandbox=sandbox)
        memory = value(found, "vmdriver_machine_memory_bytes", sandbox=sandbox)
        return cpu > 0.1 and memory > 10 * 2**20

    until(used, "nothing is used")
    found = scraped(path)
    assert value(found, "vmdriver_sandboxes", phase="running") == 1
    assert value(found, "vmdriver_machine_network_sent_bytes_total") > 500
    assert value(found, "vmdriver_machines_cpu_time_seconds_total") > 0.1
    assert value(found, "vmdriver_operation_duration_seconds_count") == 1
    assert value(found, "vmdriver_step_duration_seconds_count", step="tap") == 1
    assert value(found, "vmdriver_events_total", reason="Running") == 1
    assert value(found, "vmdriver_images") >= 1
    assert value(found, "vmdriver_disk_used_bytes", folder="images") > 2**20
    assert value(found, "vmdriver_loop_lag_seconds_count") > 3
    driver.snapshot(sandbox, "seen")
    driver.suspend(sandbox)
    driver.resume(sandbox)
    found = scraped(path)
    for operation in ("snapshot taken", "suspended", "resumed"):
        name = "vmdriver_operation_duration_seconds_count"
        assert value(found, name, operation=operation) == 1, operation
    assert driver.delete(sandbox)
    until(lambda: value(scraped(path), "vmdriver_sandboxes") == 0)
    assert driver.kill(15) < 5
    assert not path.exists()
    sent = {"vmdriver.memory.committed", "vmdriver.operation.duration"}
    assert sent <= collector.metrics
    begun = [a for name, a in collector.spans if name in {"booted", "template"}]
    assert begun == [{"sandbox": sandbox}]
    collector.close()


def test_a_collector_that_is_away_does_not_hold_up_the_drivers_end(
    new_driver: Callable[..., Driver], fresh_host: Host
) -> None:
    """The second round of its metrics came a second after the first: 3 s instead of 1.3."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        options = ["--otlp-endpoint", away, *WITHOUT_TEMPLATES]
        driver = new_driver(*options, host=fresh_host)
        assert driver.kill(15) < 2.5
