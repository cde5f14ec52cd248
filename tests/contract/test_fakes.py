"""Ports on disk, each on its fake and on the real thing: what the scenario tests rest on holds on a real disk too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import SecretStr

from tests.contract.test_publication import manifest
from tests.fakes.disks import FakeDisks
from tests.fakes.driver import spec
from tests.fakes.journal import FakeJournal
from tests.fakes.memory_store import FakeMemoryStore
from tests.fakes.records import FakeRecords
from tests.fakes.world import World
from vmdriver.errors import AlreadyExists, Exhausted, NotFound, Refused, StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import (
    Disks,
    GuestReport,
    Journal,
    Ownership,
    Records,
    no_crash_point,
)
from vmdriver.lifecycle.ports.memory import Captured, MemoryStore
from vmdriver.model.checkpoint import FileIdentity
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import Disk
from vmdriver.model.record import SandboxRecord, utc_now
from vmdriver.model.set_aside import salvage
from vmdriver.storage.checkpoints import Checkpoints
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.journal import FileJournal
from vmdriver.storage.sandboxes.records import RecordStore

CAPTURED = Captured(b"state", "<domain/>", 4096, "pc-q35-7.2", "<cpu/>")


class Side(Protocol):
    """One of the two, and how a test gets at what is below it."""

    records: Records
    store: MemoryStore
    disks: Disks

    def journal(self, sandbox_id: str) -> Journal: ...

    def path(self, name: str) -> str:
        """How it names that file or directory."""

    def harm(self, sandbox_id: str) -> None:
        """Its record cannot be read from now on."""

    def tear(self, image: str) -> None:
        """The manifest of that image cannot be read from now on."""


class InMemory:
    def __init__(self) -> None:
        self.world = World()
        self.records = FakeRecords(self.world, no_crash_point)
        self.store = FakeMemoryStore(self.world)
        self.disks = FakeDisks(self.world)

    def journal(self, sandbox_id: str) -> Journal:
        return FakeJournal(self.world, sandbox_id)

    def path(self, name: str) -> str:
        return name

    def harm(self, sandbox_id: str) -> None:
        self.world.records[sandbox_id] = "\0"

    def tear(self, image: str) -> None:
        self.world.checkpoints[image] = "{"


@dataclass
class OnDisk:
    layout: Layout
    threads: Threads

    def __post_init__(self) -> None:
        owner = Ownership(os.getuid(), os.getgid())
        self.records = RecordStore(self.layout, self.threads)
        self.store = Checkpoints(self.threads, owner)
        self.disks = DiskStore(self.layout, self.threads, owner)

    def journal(self, sandbox_id: str) -> Journal:
        return FileJournal(self.layout.sandbox(sandbox_id).ledger, self.threads)

    def path(self, name: str) -> str:
        return str(self.layout.root / name)

    def harm(self, sandbox_id: str) -> None:
        self.layout.sandbox(sandbox_id).record.write_bytes(b"\0")

    def tear(self, image: str) -> None:
        (Path(image) / "manifest.json").write_text("{")


@pytest.fixture(params=["fake", "real"])
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    if request.param == "fake":
        yield InMemory()
        return
    layout, threads = Layout(tmp_path / "state"), Threads("contract", 2)
    layout.make()
    (layout.root / "base").write_bytes(b"\0" * 2**20)
    yield OnDisk(layout, threads)
    threads.close()


# --- records and journals


def record(sandbox_id: str = "s1", **changes: Any) -> SandboxRecord:
    now = utc_now()
    made = SandboxRecord(spec=spec(sandbox_id), created_at=now, changed_at=now)
    return made.model_copy(update=changes)


async def test_a_record_comes_back_as_it_was_stored_last(side: Side) -> None:
    first = record()
    await side.records.create(first, SecretStr("t"))
    await side.records.create(record("s2"), None)
    with pytest.raises(AlreadyExists):
        await side.records.create(first, None)
    later = first.model_copy(update={"phase": Phase.RUNNING})
    await side.records.save(later)
    found = {r.id: r for r in await side.records.load_all()}
    assert found["s1"] == later
    assert set(found) == {"s1", "s2"}
    token = await side.records.token("s1")
    assert token is not None
    assert token.get_secret_value() == "t"
    assert await side.records.token("s2") is None
    assert side.records.all_there()


async def test_what_is_removed_is_gone_with_all_that_was_its(side: Side) -> None:
    await side.records.create(record(), SecretStr("t"))
    await side.journal("s1").append({"a": 1})
    image = side.path("sandboxes/s1/suspended") if isinstance(side, OnDisk) else "s1/x"
    await side.store.begin(image, 1)
    for _ in range(2):
        await side.records.remove("s1", noted=False)
    assert await side.records.load_all() == []
    assert await side.records.token("s1") is None
    assert side.journal("s1").read() == []
    assert await side.store.listed(image.rpartition("/")[0]) == []
    with pytest.raises(StorageError):
        await side.records.save(record())
    assert await side.records.load_all() == []


async def test_what_is_gone_stays_known_where_that_is_wished(side: Side) -> None:
    for name in ("a", "b", "never"):
        if name != "never":
            await side.records.create(record(name), None)
        await side.records.remove(name, noted=name != "b")
    assert set(await side.records.deleted(3600)) == {"a"}
    await side.records.create(record("a"), None)
    assert await side.records.deleted(3600) == {}, "it is there again"


async def test_one_that_cannot_be_read_is_named_and_harms_no_other(side: Side) -> None:
    for name in ("s1", "s2"):
        await side.records.create(record(name), None)
    side.harm("s1")
    assert [r.id for r in await side.records.load_all()] == ["s2"]
    assert "record.json cannot be read" in side.records.unreadable()["s1"]
    assert await side.records.salvage("nobody") == salvage("", "")
    await side.records.give_up(record("s1", intent=Intent.DELETED))
    assert {r.id for r in await side.records.load_all()} == {"s1", "s2"}
    assert side.records.unreadable() == {}


async def test_a_journal_keeps_lines_in_their_order(side: Side) -> None:
    await side.records.create(record(), None)
    assert side.journal("s1").read() == []
    journal = side.journal("s1")
    await journal.append({"n": 1}, {"n": 2})
    await journal.append({"n": 3})
    assert side.journal("s1").read() == [{"n": 1}, {"n": 2}, {"n": 3}]
    await journal.rewrite([{"n": 9}])
    await journal.append({"n": 10})
    assert side.journal("s1").read() == [{"n": 9}, {"n": 10}]
    await journal.rewrite([])
    assert side.journal("s1").read() == []


# --- checkpoints


async def image(side: Side, name: str) -> str:
    """A whole one of that name; its directory."""
    part = side.path("part")
    await side.store.begin(part, 1)
    await fill(side, part)
    parts = await side.store.write_parts(part, CAPTURED)
    identity = FileIdentity(
        path="/base.ext4", size=1, inode=1, modified_ns=1, changed_ns=1
    )
    made = manifest(parts).model_copy(update={"files": (identity,)})
    digest = await side.store.publish(part, side.path(name), made)
    await side.store.end(part)
    assert await side.store.read(side.path(name)) == (made, digest)
    return side.path(name)


async def fill(side: Side, directory: str) -> None:
    """The machine's memory is in it."""
    if isinstance(side, InMemory):
        side.world.memories[directory] = 1
    else:
        (Path(directory) / "memory").write_bytes(b"memory")


async def test_an_image_is_there_once_it_is_published(side: Side) -> None:
    part = side.path("part")
    memory = await side.store.begin(part, 1)
    assert memory == f"{part}/memory"
    with pytest.raises(NotFound):
        await side.store.read(part)
    assert await side.store.needs(part) == set()
    found = await image(side, "kept/a")
    read, _ = await side.store.read(found)
    assert await side.store.needs(found) == {"/base.ext4"}
    assert await side.store.damage(found, read.parts) == []
    assert (await side.store.saved(found)).memory == f"{found}/memory"
    assert await side.store.listed(side.path("kept")) == ["a"]
    assert await side.store.listed(side.path("nowhere")) == []
    with pytest.raises(NotFound):
        await side.store.read(part)


async def test_a_manifest_that_cannot_be_read_is_refused(side: Side) -> None:
    found = await image(side, "kept/a")
    side.tear(found)
    with pytest.raises(Refused):
        await side.store.read(found)


async def test_images_are_moved_given_up_and_removed(side: Side) -> None:
    found, other = await image(side, "kept/a"), await image(side, "kept/b")
    _, digest = await side.store.read(found)
    await side.store.move(found, other)
    assert await side.store.listed(side.path("kept")) == ["b"]
    assert (await side.store.read(other))[1] == digest, "what had its name is gone"
    await side.store.move(found, other)
    assert (await side.store.read(other))[1] == digest, "there is nothing to move"
    for _ in range(2):
        await side.store.unpublish(other)
    with pytest.raises(NotFound):
        await side.store.read(other)
    assert await side.store.listed(side.path("kept")) == ["b"], "its files stay"
    for _ in range(2):
        await side.store.remove(other)
    assert await side.store.listed(side.path("kept")) == []
    used = await image(side, "kept/c")
    for _ in range(2):
        await side.store.retire(used, side.path("kept/mapped"))
    assert await side.store.listed(side.path("kept")) == ["mapped"]
    with pytest.raises(NotFound):
        await side.store.read(side.path("kept/mapped"))


async def test_no_image_is_begun_without_room_for_it(side: Side) -> None:
    first, second = side.path("first"), side.path("second")
    free = await side.disks.free_bytes(first)
    with pytest.raises(Exhausted):
        await side.store.begin(first, free * 2)
    await side.store.begin(first, free * 2 // 3)
    with pytest.raises(Exhausted):
        await side.store.begin(second, free * 2 // 3)
    await side.store.end(first)
    await side.store.begin(second, free * 2 // 3)
    await side.store.remove(second)
    await side.store.begin(first, free * 2 // 3)


# --- disks


def layer(side: Side, number: int) -> Disk:
    """The sandbox's layer of that number, on all before it and the base."""
    names = [f"layers/s1.0000000{n}.qcow2" for n in range(number + 1)]
    *below, path = [side.path(name) for name in names]
    backing = (*reversed(below), side.path("base"))
    return Disk(
        role="root", path=path, format="qcow2", read_only=False, backing=backing
    )


async def test_layers_say_what_they_stand_on(side: Side) -> None:
    first, second = layer(side, 0), layer(side, 1)
    for disk in (first, second):
        for _ in range(2):
            await side.disks.create_overlay(disk, None)
        await side.disks.sync_layer(disk.path)
    assert await side.disks.is_whole(second.path, first.path)
    assert not await side.disks.is_whole(second.path, second.path)
    assert not await side.disks.is_whole(layer(side, 2).path, first.path)
    await side.disks.check_layers(second)
    with pytest.raises(StorageError):
        await side.disks.check_layers(
            second.model_copy(update={"backing": first.backing})
        )
    own = await side.disks.own_layers("s1")
    assert list(own.items()) == [(first.path, ()), (second.path, (first.path,))]
    assert set(await side.disks.layers("s1")) == {first.path, second.path}
    assert set(await side.disks.layers()) == {first.path, second.path}
    assert await side.disks.layers("s10") == await side.disks.layers("s") == []
    assert await side.disks.freeze_layer(first.path, None) > 0
    for _ in range(2):
        await side.disks.merge_layer(second, None)
    for _ in range(2):
        await side.disks.remove(second.path)
    assert list(await side.disks.own_layers("s1")) == [first.path]


async def test_a_guest_without_a_status_disk_has_said_nothing(side: Side) -> None:
    path = side.path("sandboxes/s1/status.img")
    assert await side.disks.report(path) == GuestReport()
    assert side.disks.report_now(path) == GuestReport()
