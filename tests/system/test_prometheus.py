"""A real Prometheus scrapes a driver through the lives of a few sandboxes: every query of the dashboard then has an answer."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.eager import EAGER
from tests.fakes.ports import free_port
from tests.fakes.prometheus_queries import Query, known, panels
from tests.fakes.waiting import until
from tests.system.machines import Driver
from tests.system.prometheus import Prometheus, prometheus
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

VARIABLES = {
    "instance": ".*",
    "operation": ".*",
    "window": "5m",
    "__rate_interval": "20s",
}
NOT_ALWAYS = {"vmdriver_sandboxes_still", "vmdriver_tls_connections_total"}
"""Have series only while a machine stands still, and once another host has connected."""


def counted(watched: Prometheus, name: str, labels: str, number: int) -> None:
    """Wait until Prometheus has seen that this has happened so many times."""
    query = f"vmdriver_{name}{{{labels}}}"
    until(
        lambda: watched.sum(query) == number,
        lambda: f"{query} is {watched.values(query)}, not {number}",
        limit_s=60,
    )


def operations(watched: Prometheus, operation: str, number: int) -> None:
    labels = f'operation="{operation}"'
    counted(watched, "operation_duration_seconds_count", labels, number)


def live(driver: Driver, watched: Prometheus) -> None:
    """Everything that the dashboard shows happens; what is shown as a time happens twice, since of a first time a rate
    shows nothing. One sandbox runs at the end.
    """
    until(lambda: any(t.waiting for t in driver.templates()), "no machine waits", 90)
    one = driver.create(workspace="w")
    driver.wait(one, "Running")
    operations(watched, "template", 1)
    other = driver.create(name="other", workspace="w")
    driver.wait(other, "Running")
    operations(watched, "template", 2)
    driver.suspend(one)
    driver.resume(one)
    driver.snapshot(one, "seen")
    driver.stop(other)
    operations(watched, "stopped", 1)
    driver.start_sandbox(other)
    driver.wait(other, "Running")
    driver.stop(other)
    operations(watched, "stopped", 2)
    nowhere = f"{driver.host.registry}/nowhere:1"
    template = pb.DriverSandboxTemplate(image=nowhere)
    failed = driver.create(wait=False, name="failed", workspace="w", template=template)
    driver.wait(failed, "ProvisioningFailed")
    with pytest.raises(grpc.RpcError, match="may have 3 sandboxes"):
        driver.create(wait=False, name="too-many", workspace="w")
    driver.delete(other)
    operations(watched, "deleted", 1)
    counted(watched, "launch_failures_total", 'tried_again="false"', 1)
    driver.gateway.shell(one, "head -c 3000000 /dev/urandom > /tmp/x; sync")
    driver.gateway.shell(one, "getent hosts some.test || true")


@contextmanager
def a_volume(driver: Driver) -> Iterator[None]:
    """In the state directory that tests share."""
    of = ("data", "--workspace", "w")
    driver.operate("volume", "create", *of, "--size-mib", "64")
    try:
        yield
    finally:
        driver.operate("volume", "rm", *of)


@contextmanager
def in_front(
    driver: Driver, directory: Path, port: int
) -> Iterator[Callable[[], None]]:
    """A composed driver, which follows its base, with somebody who watches it; what asks it something is yielded."""
    socket = directory / "c" / "c.sock"
    flags = {
        "base": f"unix:{driver.socket}",
        "bind-socket": str(socket),
        "state-dir": str(directory / "composed"),
        "metrics-listen": f"127.0.0.1:{port}",
    }
    config = directory / "compose.toml"
    config.write_text('extensions = ["workspace-quota"]\n')
    words = [f"--{name}={value}" for name, value in flags.items()]
    program = [sys.executable, "-m", "vmdriver", "compose", "--config", str(config)]
    process = subprocess.Popen([*program, *words])
    try:
        with grpc.insecure_channel(f"unix:{socket}", options=EAGER) as channel:
            stub: Any = pb_grpc.ComputeDriverStub(channel)
            nothing = pb.GetCapabilitiesRequest()
            stub.GetCapabilities(nothing, wait_for_ready=True, timeout=20)
            events = stub.WatchSandboxes(pb.WatchSandboxesRequest())
            yield lambda: stub.ListSandboxes(pb.ListSandboxesRequest())
            events.cancel()
    finally:
        process.terminate()
        assert process.wait(20) == 0


def answered(watched: Prometheus, query: Query) -> bool:
    found = watched.values(query.asked(**VARIABLES))
    return any(not math.isnan(value) for value in found.values())


def test_every_query_of_the_dashboard_has_an_answer_after_a_few_lives(
    new_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    port, config = free_port(), tmp_path / "config.toml"
    config.write_text(
        'extensions = ["workspace-quota"]\n'
        "[extension.workspace-quota.default]\nsandboxes = 3\n"
    )
    listen = ("--metrics-listen", f"127.0.0.1:{port}")
    names = ("--dns", "host")  # the driver is who is asked for them
    options = (*listen, *names, "--warm-pool", "1", "--config", str(config))
    driver = new_driver(*options)
    front = free_port()
    with (
        prometheus(tmp_path, port, front) as watched,
        a_volume(driver),
        in_front(driver, tmp_path, front) as ask,
    ):
        live(driver, watched)
        unanswered: list[str] = []

        def every_query_is_answered() -> bool:
            ask()
            unanswered[:] = [q.where for q in panels() if not answered(watched, q)]
            return not unanswered

        until(every_query_is_answered, lambda: unanswered, limit_s=30, pause_s=0.5)
        rules = watched.rules()
        assert [rule for rule in rules if rule["health"] != "ok"] == []
        assert {r["name"] for r in rules if r["state"] == "firing"} == set()
        what_is_scraped_is_what_is_documented(watched)


def what_is_scraped_is_what_is_documented(watched: Prometheus) -> None:
    """Names and labels, in both directions."""
    scraped: dict[str, set[str]] = {}
    for series in watched.values('{__name__=~"vmdriver_.*"}'):
        names = {name for name, _ in series}
        scraped.setdefault(dict(series)["__name__"], set()).update(
            names - {"__name__", "otel_scope_name"}
        )
    there = known()
    assert scraped.keys() - there.keys() == set()
    assert there.keys() - scraped.keys() == NOT_ALWAYS
    for name, labels in scraped.items():
        assert labels == there[name], name
