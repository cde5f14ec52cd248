"""Metrics: where they may be asked for, what is summed, and how they are served."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Gauge

from vmdriver.model.usage import Usage
from vmdriver.storage import disk_use
from vmdriver.telemetry import seen
from vmdriver.telemetry.exposition import Exposition
from vmdriver.telemetry.gauges import EVERY, Gauges
from vmdriver.telemetry.listen import Listen, parse_listen
from vmdriver.telemetry.machines import ALL, ONE, TOP, Usages, Whose
from vmdriver.telemetry.seen import Value


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("unix:/run/m.sock", Listen(path=Path("/run/m.sock"))),
        ("127.0.0.1:9464", Listen(host="127.0.0.1", port=9464)),
        ("localhost:1", Listen(host="127.0.0.1", port=1)),
        ("[::1]:9464", Listen(host="::1", port=9464)),
    ],
)
def test_where_metrics_may_be_asked_for(text: str, listen: Listen) -> None:
    assert parse_listen(text) == listen


@pytest.mark.parametrize(
    "text",
    [
        *("unix:run/m", "unix:", "0.0.0.0:9464", "192.0.2.1:80", "host:80", "9464"),
        *(":9464", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1:²"),
    ],
)
def test_nobody_outside_this_host_may_ask(text: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|loopback|port"):
        parse_listen(text)


def values_of(values: Sequence[Value], shown: seen.Shown) -> dict[str, float]:
    return {
        v.attributes.get("sandbox", ""): v.number for v in values if v.shown is shown
    }


def test_sums_only_grow_whoever_comes_and_goes() -> None:
    usages, a, b = Usages(), Whose("a", "w"), Whose("b", "w")
    cpu, memory = ALL["cpu_s"], ALL["memory"]
    first = usages.note({a: Usage("1", cpu_s=2, memory=10), b: Usage("2", cpu_s=1)})
    assert values_of(first, cpu) == {"": 3}
    assert values_of(first, memory) == {"": 10}
    assert values_of(first, ONE["cpu_s"]) == {"a": 2, "b": 1}
    gone = usages.note({b: Usage("2", cpu_s=4)})
    assert values_of(gone, cpu) == {"": 6}, "what a has used is not forgotten"
    assert values_of(gone, ONE["cpu_s"]) == {"b": 4}
    again = usages.note({a: Usage("3", cpu_s=1), b: Usage("2", cpu_s=4)})
    assert values_of(again, cpu) == {"": 7}, "another QEMU begins from nothing"
    older = usages.note({a: Usage("3", cpu_s=1), b: Usage("4", cpu_s=2)})
    assert values_of(older, cpu) == {"": 9}


def test_only_the_busiest_machines_have_series_of_their_own() -> None:
    usages = Usages()
    many = {Whose(f"s{n:03}", "w"): Usage(str(n), cpu_s=n) for n in range(3 * TOP)}
    own = values_of(usages.note(many), ONE["cpu_s"])
    assert set(own) == {f"s{n:03}" for n in range(2 * TOP, 3 * TOP)}


def test_what_has_several_names_on_disk_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(bytes(8192))
    os.link(tmp_path / "a" / "one", tmp_path / "b" / "again")
    (tmp_path / "b" / "deep" / "two").write_bytes(bytes(4096))
    (tmp_path / "b" / "away").symlink_to("/usr")
    (tmp_path / "file").write_bytes(bytes(4096))
    assert disk_use.by_folder(tmp_path) == {"a": 8192, "b": 4096}
    assert disk_use.by_folder(tmp_path / "none") == {}


def asked(family: socket.AddressFamily, address: str | tuple[str, int]) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(address)
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer.decode()


def test_served_on_a_socket_of_roots_and_on_the_loopback(tmp_path: Path) -> None:
    registry, path = CollectorRegistry(), tmp_path / "m"
    Gauge("things", "a number", registry=registry).set(7)
    first = Exposition(Listen(path=path), registry)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "things 7.0" in asked(socket.AF_UNIX, str(path))
    first.close()
    assert not path.exists()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    second = Exposition(Listen(host="127.0.0.1", port=port), registry)
    assert "things 7.0" in asked(socket.AF_INET, ("127.0.0.1", port))
    with pytest.raises(OSError, match="in use"):
        Exposition(Listen(host="127.0.0.1", port=port), registry)
    second.close()


def test_a_dead_drivers_socket_makes_way_and_nothing_else_does(tmp_path: Path) -> None:
    path, file = tmp_path / "m", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    Exposition(Listen(path=path), CollectorRegistry()).close()
    file.write_text("precious")
    with pytest.raises(FileExistsError):
        Exposition(Listen(path=file), CollectorRegistry())
    assert file.read_text() == "precious"


def collected(reader: InMemoryMetricReader) -> dict[str, float]:
    data = reader.get_metrics_data()
    return {
        metric.name: metric.data.data_points[0].value
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.data.data_points
    }


async def test_one_look_answers_all_callbacks_and_a_busy_loop_holds_up_nobody() -> None:
    looks, slow = 0, threading.Event()

    async def look() -> Sequence[Value]:
        nonlocal looks
        looks += 1
        if slow.is_set():
            await asyncio.sleep(60)
        return [Value(seen.WATCHERS, looks, {}), Value(seen.IMAGES, 3, {})]

    gauges, reader = Gauges(look, patience_s=0.2), InMemoryMetricReader()
    gauges.register(MeterProvider([reader]).get_meter("test"))
    found = await asyncio.to_thread(collected, reader)
    assert found == {"vmdriver.watchers": 1, "vmdriver.images": 3}
    assert looks == 1
    slow.set()
    gauges, reader = Gauges(look, patience_s=0.2), InMemoryMetricReader()
    gauges.register(MeterProvider([reader]).get_meter("test"))
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(collected, reader) == {}
    gauges.end()
    before = looks
    await asyncio.to_thread(collected, reader)
    assert looks == before


def test_every_metric_has_a_name_of_its_own() -> None:
    names = [shown.name for shown in EVERY]
    assert len(set(names)) == len(names)
    assert all(shown.description and shown.unit for shown in EVERY)
