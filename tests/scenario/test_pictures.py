"""Pictures of a driver: what they show, and what they cost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import waiting, with_template
from vmdriver._proto import admin_pb2 as pb
from vmdriver.cli.top.rows import (
    ORDERS,
    History,
    Row,
    chosen,
    columns,
    headlines,
    heights,
)
from vmdriver.model.condition import PlatformEvent
from vmdriver.model.picture import (
    Picture,
    SeenEvent,
    SeenSandbox,
    SeenTemplate,
    Totals,
)
from vmdriver.model.usage import Usage
from vmdriver.service.admin import Admin
from vmdriver.service.pictures import decode_picture, encode_picture
from vmdriver.service.servicer import Readiness
from vmdriver.telemetry.last_seen import LastSeen
from vmdriver.telemetry.use import MachineUse

AT = datetime(2026, 11, 26, 20, 0, tzinfo=UTC)


def sandbox(name: str, usage: Usage | None = None, age_s: int = 5) -> SeenSandbox:
    return SeenSandbox(
        id=f"id-{name}",
        name=name,
        workspace="w",
        phase="running",
        intent="running",
        reason="Running",
        message="the machine is running",
        since=AT,
        created=AT - timedelta(seconds=age_s),
        usage=usage,
        stored=7,
    )


def picture(at: float, *sandboxes: SeenSandbox) -> Picture:
    return Picture(at=AT, version="1", used_at=at, sandboxes=sandboxes)


def test_what_is_sent_is_what_is_received() -> None:
    usage = Usage("1@2", 1.5, 10, 4, 8, 1, 2, 3, 4)
    told = SeenEvent("id-a", PlatformEvent("Odd", "why", AT, "Warning"))
    whole = Picture(
        at=AT,
        version="1.2",
        used_at=12.5,
        sandboxes=(sandbox("a", usage), sandbox("b")),
        templates=(SeenTemplate("k", "sha256:x", 2, 512, 99, 1),),
        events=(told,),
        totals=Totals(1, 2, 3, 4, 5),
    )
    sent = encode_picture(whole).SerializeToString()
    assert decode_picture(pb.Picture.FromString(sent)) == whole


def test_rates_are_of_two_looks_at_the_same_machine() -> None:
    history = History()
    history.take(picture(10.0, sandbox("a", Usage("1", cpu_s=5, read=100, sent=1000))))
    assert [(r.cpu, r.disk, r.network) for r in history.rows()] == [(None, None, None)]
    later = sandbox("a", Usage("1", cpu_s=8, read=300, written=100, sent=3000))
    history.take(picture(12.0, later))
    for _ in range(2):  # a second picture of the same look changes nothing
        (row,) = history.rows()
        assert (row.cpu, row.disk, row.network) == (1.5, 150, 1000)
        history.take(picture(12.0, later))
    history.take(picture(14.0, sandbox("a", Usage("2", cpu_s=1))))
    (row,) = history.rows()
    assert row.cpu is None, "it is another machine"
    history.take(picture(1.0, sandbox("a", Usage("2", cpu_s=1))))
    assert history.rows()[0].cpu is None, "the host was started again"


def test_a_sandbox_that_has_gone_has_its_name_while_an_event_tells_of_it() -> None:
    history = History()
    told = SeenEvent("id-a", PlatformEvent("Odd", "why", AT, "Warning"))
    history.take(replace(picture(1, sandbox("a"), sandbox("b")), events=(told,)))
    history.take(replace(picture(2, sandbox("c")), events=(told,)))
    assert history.names == {"id-a": "a", "id-c": "c"}
    history.take(picture(3, sandbox("c")))
    assert history.names == {"id-c": "c"}, "nothing is kept for good"


def test_rows_are_found_and_sorted() -> None:
    history = History()
    history.take(
        picture(
            1, sandbox("b", Usage("1", own=5), 50), sandbox("a", None, 9), sandbox("C")
        )
    )
    rows = history.rows()

    def names(order: str, wanted: str = "") -> list[str]:
        return [row.seen.name for row in chosen(rows, order, wanted)]

    assert names("memory") == ["b", "C", "a"]
    assert names("age") == ["b", "a", "C"]
    assert names("name") == ["C", "a", "b"]
    assert names("cpu") == ["C", "a", "b"], "equal ones are in the order of names"
    assert names("cpu", "ID-A") == ["a"]
    assert names("cpu", "nowhere") == []
    assert all(set(names(order)) == {"a", "b", "C"} for order in ORDERS)


def test_columns_fit_into_every_width() -> None:
    for width in range(24, 250):
        taken = sum(column.width + 2 for column in columns(width)) + 1
        assert taken <= width
    assert "WORKSPACE" in {column.name for column in columns(120)}
    assert [column.name for column in columns(40)] == ["NAME", "PHASE", "CPU%", "OWN"]
    assert len(columns(80)) == 9


def test_a_table_has_room_for_a_row_on_every_terminal() -> None:
    for lines in range(5, 100):
        room = heights(lines)
        assert room.head + room.events + 2 <= lines - 2
        assert room.events >= 0
    assert heights(60).events == 10


def test_headlines_fit() -> None:
    large = replace(
        picture(1.0),
        totals=Totals(
            committed=600 * 2**30,
            memory_limit=1024 * 2**30,
            sandbox_limit=1000,
            disk_free=2**43,
        ),
    )
    uses = [
        Row(sandbox("x", Usage("1", own=200 * 2**30, memory=999 * 2**30)), cpu=447.0)
    ]
    for lines in (headlines(picture(1.0), []), headlines(large, uses)):
        assert all(len(line) <= 80 for line in lines)


async def test_a_driver_is_looked_at_once_for_all_who_watch() -> None:
    looks = []

    def usage_of(taps: Mapping[str, str]) -> dict[str, Usage]:
        looks.append(dict(taps))
        return {domain: Usage("1", own=4) for domain in taps}

    driver = FakeDriver(World(), usage_of=usage_of)
    await driver.manager.recover()
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    found = await asyncio.gather(*(driver.pictures.now() for _ in range(20)))
    assert len(looks) == 1
    assert len({id(one) for one in found}) == 1
    (seen,) = found[0].sandboxes
    assert (seen.id, seen.phase, seen.reason) == ("s1", "running", "Running")
    assert seen.usage == Usage("1", own=4)
    assert [told.sandbox_id for told in found[0].events][-1] == "s1"
    assert found[0].totals.committed == driver.plan("s1").memory_mib * 2**20
    await driver.close()


async def test_templates_and_those_that_wait_are_in_it() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    (template,) = (await driver.pictures.now()).templates
    assert template.waiting == 1
    assert template.memory_mib > 0
    await driver.close()


async def test_one_that_cannot_be_looked_at_holds_up_nobody() -> None:
    hangs = threading.Event()

    def usage_of(_taps: Mapping[str, str]) -> dict[str, Usage]:
        hangs.wait(30)
        return {}

    driver = FakeDriver(World(), usage_of=usage_of)
    await driver.manager.recover()
    begun = time.monotonic()
    first = await driver.pictures.now()
    assert time.monotonic() - begun < 10
    assert first.used_at == 0
    hangs.set()
    async with asyncio.timeout(5):
        while any(task.get_name() == "machines" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)
    await driver.close()


async def test_looking_takes_a_small_share_of_the_time() -> None:
    looks = 0

    async def slow() -> int:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.1)
        return looks

    seen = LastSeen("test", 0, every_s=0.01, share=0.1)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        await seen.look(slow)
        await asyncio.sleep(0.01)
    assert looks == 1
    eager = LastSeen("test", 0, every_s=0.01)
    assert [await eager.look(slow) for _ in range(2)] == [2, 3]


async def test_a_stream_of_pictures_ends_with_the_driver() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    readiness = Readiness()
    readiness.set(driver.manager)
    service = Admin(readiness, driver.broadcaster, driver.pictures.now)
    stream = aiter(service.Observe(pb.ObserveRequest(interval_ms=60000), None))
    await anext(stream)
    rest = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    driver.broadcaster.close()
    async with asyncio.timeout(5):
        assert await rest is None
    await driver.close()


async def test_machine_use_is_by_sandbox_and_leaves_out_who_has_no_machine() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec("s1", workspace="w"), None)
    await driver.settled()
    use = MachineUse(
        driver.core.sandboxes, lambda taps: dict.fromkeys(taps, Usage("1"))
    )
    (whose,) = (await use.look()).of
    assert (whose.sandbox, whose.workspace) == ("s1", "w")
    await driver.manager.stop("s1", "")
    await driver.settled()
    use = MachineUse(
        driver.core.sandboxes, lambda taps: dict.fromkeys(taps, Usage("1"))
    )
    assert (await use.look()).of == {}
    await driver.close()
