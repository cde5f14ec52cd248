"""Metrics: where they may be asked for, what is summed, and how they are served."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Gauge,
    Metric,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from tests.fakes.waiting import until
from vmdriver.config.gateway import GatewaySettings
from vmdriver.lifecycle.ports.images import BaseDisk, KnownImage
from vmdriver.model.usage import Usage
from vmdriver.storage import disk_use
from vmdriver.telemetry import seen
from vmdriver.telemetry.catalogue import EVERY
from vmdriver.telemetry.exposition import Exposition
from vmdriver.telemetry.gauges import Gauges
from vmdriver.telemetry.last_seen import LastSeen
from vmdriver.telemetry.listen import Listen, parse_listen
from vmdriver.telemetry.machines import TOP, Usages, Whose
from vmdriver.telemetry.readers import Scraped
from vmdriver.telemetry.seen import MOST_IMAGES, Value


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
        *("unix:/run/" + "m" * 103, "unix:/run/\0m", "unix:/run/m\n"),
        *(":9464", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1:²"),
    ],
)
def test_nobody_outside_this_host_may_ask(text: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|loopback|port|a socket.s path"):
        parse_listen(text)


@pytest.mark.parametrize(
    "url", ["http://user:secret@127.0.0.1:4317", "https://user@host", "collector:4317"]
)
def test_a_collectors_address_holds_no_password_that_the_log_would_tell(
    url: str,
) -> None:
    with pytest.raises(ValidationError, match=r"password|URL"):
        GatewaySettings(otlp_endpoint=url)


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


def test_kept_memory_is_told_apart_from_a_sandboxs_other_files(tmp_path: Path) -> None:
    for name in ("s1/snapshots/a", "s1/suspended", "s2/mapped", "s2/suspended"):
        folder = tmp_path / "sandboxes" / name
        folder.mkdir(parents=True)
        (folder / "memory").write_bytes(bytes(4096))
    (tmp_path / "sandboxes" / "s1" / "record.json").write_bytes(bytes(4096))
    (tmp_path / "layers" / "suspended").mkdir(parents=True)
    (tmp_path / "layers" / "suspended" / "layer").write_bytes(bytes(4096))
    assert disk_use.by_folder(tmp_path) == {
        "layers": 4096,
        "sandboxes": 4096,
        "sandboxes/mapped": 4096,
        "sandboxes/snapshots": 4096,
        "sandboxes/suspended": 8192,
    }


def asked(
    family: socket.AddressFamily, address: str | tuple[str, int], what: str = "/metrics"
) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(address)
        client.sendall(f"GET {what} HTTP/1.0\r\n\r\n".encode())
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


def test_a_live_drivers_socket_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "m"
    first = Exposition(Listen(path=path), CollectorRegistry())
    with pytest.raises(OSError, match="another program"):
        Exposition(Listen(path=path), CollectorRegistry())
    assert "HTTP" in asked(socket.AF_UNIX, str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as others:
        others.bind(str(path))
        first.close()
        assert path.exists(), "another program's by now"


def test_a_sockets_mode_is_set_before_it_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the folder could put a link into its place in between."""
    monkeypatch.setattr(Path, "chmod", None)
    Exposition(Listen(path=tmp_path / "m"), CollectorRegistry()).close()


def test_many_who_say_nothing_and_take_nothing_cost_the_driver_little(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    registry, path = CollectorRegistry(), tmp_path / "m"
    gauge = Gauge("things", "a number", ["of"], registry=registry)
    for number in range(5000):
        gauge.labels(str(number) * 20).set(1)
    served = Exposition(Listen(path=path), registry, patience_s=0.5)
    before = threading.active_count()
    callers = []
    for number in range(300):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(str(path))
        caller.settimeout(10)
        if number % 2:
            with suppress(BrokenPipeError):
                caller.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        callers.append(caller)
        assert threading.active_count() - before <= 16
    until(lambda: threading.active_count() == before, "somebody is waited for")
    for caller in callers:
        caller.close()
    assert "things" in asked(socket.AF_UNIX, str(path))
    served.close()
    assert "Traceback" not in capfd.readouterr().err


def test_two_who_ask_at_once_both_get_all_of_it(tmp_path: Path) -> None:
    """OpenTelemetry's collector gave one of them the other's samples as well."""
    path, both = tmp_path / "m", threading.Barrier(2)

    class Slow:
        collecting = 0

        def collect(self) -> Iterator[Metric]:
            self.collecting += 1
            with suppress(threading.BrokenBarrierError):
                both.wait(0.5)  # until the other one is here as well, if he may
            assert self.collecting == 1
            self.collecting -= 1
            yield GaugeMetricFamily("things", "a number", value=7)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Slow())
    served = Exposition(Listen(path=path), registry)
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: asked(socket.AF_UNIX, str(path)), "12"))
    assert all(answer.count("things 7.0") == 1 for answer in answers)
    served.close()


def test_only_what_is_asked_for_by_name_is_shown(tmp_path: Path) -> None:
    registry, path = CollectorRegistry(), tmp_path / "m"
    for name in ("things", "others"):
        Gauge(name, "a number", registry=registry).set(7)
    served = Exposition(Listen(path=path), registry)
    some = asked(socket.AF_UNIX, str(path), "/metrics?name[]=things")
    assert ("things 7.0" in some, "others 7.0" in some) == (True, False)
    served.close()


def collected(gauges: Gauges) -> dict[str, float]:
    data = gauges.beside(MetricsData([]))
    return {
        metric.name: metric.data.data_points[0].value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_one_look_answers_all_callbacks_and_a_busy_loop_holds_up_nobody() -> None:
    looks, slow = 0, threading.Event()

    async def look() -> Sequence[Value]:
        nonlocal looks
        looks += 1
        if slow.is_set():
            await asyncio.sleep(60)
        return [Value(seen.WATCHERS, looks, {}), Value(seen.IMAGES, 3, {})]

    gauges = Gauges(look, Resource.get_empty(), patience_s=0.2)
    found = await asyncio.gather(*(asyncio.to_thread(collected, gauges) for _ in "12"))
    assert found == [{"vmdriver.watchers": 1, "vmdriver.images": 3}] * 2
    assert looks == 1
    slow.set()
    gauges = Gauges(look, Resource.get_empty(), patience_s=0.2)
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(collected, gauges) == {}
    gauges.end()
    before = looks
    await asyncio.to_thread(collected, gauges)
    assert looks == before


async def test_the_3000th_sandbox_has_series_of_its_own_and_none_of_before() -> None:
    """OpenTelemetry's SDK has all but the first 2000 in one."""
    usages, number = Usages(), 0

    async def look() -> Sequence[Value]:
        nonlocal number
        number += TOP
        mine = (Whose(f"s{number + n}", 'w"\n}') for n in range(TOP))
        return usages.note({whose: Usage(whose.sandbox, cpu_s=1) for whose in mine})

    gauges = Gauges(look, Resource.get_empty(), fresh_s=0)
    reader = Scraped(gauges)
    provider = MeterProvider([reader])
    provider.get_meter("test").create_counter("vmdriver.events").add(1)
    name, text = "vmdriver_machine_cpu_time_seconds_total", ""
    for _ in range(3000 // TOP):
        text = (await asyncio.to_thread(generate_latest, REGISTRY)).decode()
    provider.shutdown()
    families = list(text_string_to_metric_families(text))
    own = [s for family in families for s in family.samples if s.name == name]
    assert {s.labels["sandbox"] for s in own} == {f"s{number + n}" for n in range(TOP)}
    assert {s.labels["workspace"] for s in own} == {'w"\n}'}
    sums = [
        s for family in families for s in family.samples if "machines_cpu" in s.name
    ]
    assert [s.value for s in sums] == [3000]


async def test_a_collector_is_sent_what_was_counted_and_what_is_seen() -> None:
    """OTLP's encoder keeps the last entry of a resource, and of a scope in it."""

    async def look() -> Sequence[Value]:
        return [Value(seen.WATCHERS, 1, {})]

    resource, kept = Resource.create({"service.name": "test"}), InMemoryMetricReader()
    meters = MeterProvider([kept], resource)
    for scope in ("vmdriver", "another"):
        meters.get_meter(scope).create_counter(f"{scope}.events").add(1)
    counted = kept.get_metrics_data()
    assert counted is not None
    gauges = Gauges(look, resource)
    both = await asyncio.to_thread(gauges.beside, counted)
    names = {
        metric.name
        for resource_metrics in encode_metrics(both).resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    }
    assert names == {"vmdriver.events", "another.events", "vmdriver.watchers"}
    meters.shutdown()


async def test_what_hangs_is_looked_at_once_and_shown_when_it_is_seen() -> None:
    hangs, begun = asyncio.Event(), 0

    async def see() -> str:
        nonlocal begun
        begun += 1
        await hangs.wait()
        return "seen"

    looked = LastSeen("a disk", "nothing", patience_s=0.05)
    async with asyncio.timeout(10):
        assert [await looked.look(see) for _ in range(5)] == ["nothing"] * 5
        assert begun == 1
        hangs.set()
        while await looked.look(see) != "seen":
            pass


async def test_a_look_that_fails_leaves_what_was_seen_before() -> None:
    looked = LastSeen("a disk", 0)

    async def fail() -> int:
        raise OSError(5, "no")

    async def see() -> int:
        return 7

    assert [await looked.look(see), await looked.look(fail)] == [7, 7]
    rarely = LastSeen("a disk", 0, every_s=3600)
    assert [await rarely.look(see), await rarely.look(fail)] == [7, 7]


def test_every_metric_has_a_name_of_its_own() -> None:
    names = [shown.name for shown in EVERY]
    assert len(set(names)) == len(names)
    assert all(shown.description and shown.unit for shown in EVERY)


def image(name: str, size: int) -> KnownImage:
    disk = BaseDisk("/disk", f"sha256:{name}")
    return KnownImage(disk, (f"registry/{name}:1",), size, 2 * size, 0.0, 0.0)


def test_only_the_largest_images_have_series_of_their_own_and_each_has_one() -> None:
    """Prometheus takes nothing at all of a scrape with a series twice."""
    many = [image(f"{n:03}", n) for n in range(1, 3 * MOST_IMAGES)]
    found = seen.of_images([*many, image("002", 1000), image("002", 500)])
    own = {v.attributes["image"]: v.number for v in found if v.shown is seen.IMAGE_SIZE}
    assert len(own) == MOST_IMAGES == sum(v.shown is seen.IMAGE_SIZE for v in found)
    assert own["registry/002:1"] == 1502
    assert "registry/001:1" not in own
