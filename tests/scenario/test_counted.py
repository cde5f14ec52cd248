"""What is counted and timed of sandboxes' lives."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

from vmdriver.model.reasons import sections
from vmdriver.telemetry.catalogue import COUNTED

PROGRAM = """
import asyncio, json, tempfile
from pathlib import Path
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

kept = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([kept]))
from tests.fakes.driver import spec
from tests.scenario.stage import operations, waiting, with_template
from tests.fakes.authority import Authority
from tests.fakes.far_driver import far_driver
from vmdriver.service.tls.context import context
from vmdriver.service.tls.keys import Side

async def live():
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    for name in ("claimed", "s1"):
        await driver.manager.create(spec(name, driver_config={"on_stop": "suspend"}), None)
        await driver.settled()
    do, one = operations(driver)
    await do.create_snapshot(one, "kept", disk_only=False)
    await do.restore_snapshot(one, "kept")
    await do.suspend(one)
    await do.resume(one)
    for _ in "12":
        await driver.manager.stop("first", "")
        await driver.manager.start("first", "")
        await driver.settled()
    for number in range(50):
        driver.tell("s1", f"AnExtensionsOwn{number}", "a word of its own")
    driver.world.fail = lambda call: call.startswith("prepare ")
    await driver.manager.create(spec("fails"), None)
    await driver.settled()
    driver.world.fail = lambda call: False
    await driver.manager.delete("fails", "")
    await driver.manager.delete("s1", "")
    await driver.settled()
    await driver.close()

async def far():
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder) / "ca")
        server = authority.issue("host.test", Side.SERVER)
        client = authority.issue("gateway.test", Side.CLIENT)
        async with far_driver(Path(folder) / "far", server) as (_, remote):
            port = remote.listener.address.port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1" + b"\\r\\n" * 2)
            await reader.read()
            writer.transport.abort()
            shown = context(client, Side.CLIENT)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=shown, server_hostname="host.test")
            await reader.read(9)
            writer.transport.abort()

asyncio.run(live())
asyncio.run(far())
found = {}
for resource in kept.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            found[metric.name] = [
                [dict(point.attributes), getattr(point, "count", None) or getattr(point, "value", 0)]
                for point in metric.data.data_points
            ]
print(json.dumps(found))
"""
"""In a process of its own: there is one provider in each."""


@cache
def lived() -> dict[str, list[tuple[dict[str, str], int]]]:
    """By metric: attributes, and how often."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Any = json.loads(done.stdout)
    return found


def number(name: str, **attributes: str) -> int:
    return sum(n for own, n in lived()[name] if attributes.items() <= own.items())


def test_every_operation_is_timed_with_its_steps() -> None:
    expected = {
        "booted": 1,
        "template": 2,
        "relaunched": 2,
        "resumed": 1,
        "snapshot": 1,
        "suspended": 1,
        "snapshot taken": 1,
        "deleted": 2,
    }
    done = {own["operation"]: n for own, n in lived()["vmdriver.operation.duration"]}
    assert done.items() >= expected.items(), done
    assert done["stopped"] >= 2
    for operation in done:
        assert number("vmdriver.step.duration", operation=operation) >= 1, operation
    for operation, step in (
        *(("booted", "tap"), ("template", "guest takes its files")),
        *(("stopped", "flush"), ("stopped", "release"), ("suspended", "memory")),
        *(("resumed", "load"), ("snapshot taken", "memory"), ("deleted", "layers")),
    ):
        assert number("vmdriver.step.duration", operation=operation, step=step), step


def test_templates_and_the_pool_count_hits_and_misses() -> None:
    lookups = "vmdriver.template.lookups"
    assert number(lookups, outcome="hit") >= 2
    assert number(lookups, outcome="miss") == 1, "the first one"
    assert number(lookups, outcome="none") >= 2, "disks that were written to"
    assert number("vmdriver.warm_pool.lookups", outcome="hit") >= 1


def test_launches_that_fail_are_counted_by_what_stood_in_their_way() -> None:
    assert number("vmdriver.failures", reason="ProvisioningFailed") == 1
    assert number("vmdriver.launch.failures", tried_again="false") == 1


def test_an_extensions_own_reasons_have_one_series_together() -> None:
    explained = {e.reason for entries in sections().values() for e in entries}
    for name in ("vmdriver.events", "vmdriver.failures", "vmdriver.launch.failures"):
        reasons = {own["reason"] for own, _ in lived()[name]}
        assert reasons <= explained | {"other"}, name
    assert number("vmdriver.events", reason="other") == 50


def test_connections_from_other_hosts_are_counted_by_what_became_of_them() -> None:
    assert number("vmdriver.tls.connections", outcome="taken") == 1
    assert number("vmdriver.tls.connections", outcome="refused") == 1


def test_what_is_counted_is_what_is_documented() -> None:
    labels = {shown.name: set(shown.labels) for shown in COUNTED}
    for name, points in lived().items():
        assert {frozenset(own) for own, _ in points} == {frozenset(labels[name])}, name
