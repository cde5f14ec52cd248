"""Records and ledgers that cannot be read, on a real file system, and what the commands say of
them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.driver import spec
from vmdriver.cli import inspect
from vmdriver.cli.doctor.examination import unreadable
from vmdriver.cli.main import main
from vmdriver.cli.unread import unread
from vmdriver.config import Loaded, load
from vmdriver.errors import StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.phase import Intent
from vmdriver.model.plan import Disk, Lease
from vmdriver.model.record import SandboxRecord, utc_now
from vmdriver.model.set_aside import STATE_UNREADABLE, WAY_OUT
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout, SandboxFiles
from vmdriver.storage.sandboxes.journal import FileJournal
from vmdriver.storage.sandboxes.records import RecordStore

LEASE = Lease(
    index=3, host_ip="10.0.128.13", guest_ip="10.0.128.14", mac="02:00", tap="vmd1"
)


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("storage", 2)
    yield threads
    threads.close()


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return load(flags={"state_dir": str(tmp_path / "state")}, environment={})


@pytest.fixture
def layout(loaded: Loaded) -> Layout:
    layout = Layout(loaded.config.driver.state_dir)
    layout.make()
    return layout


async def stored(
    layout: Layout, threads: Threads, sandbox_id: str = "s1"
) -> SandboxFiles:
    now = utc_now()
    record = SandboxRecord(
        spec=spec(sandbox_id, workspace="w"), created_at=now, changed_at=now
    )
    await RecordStore(layout, threads).create(record, None)
    files = layout.sandbox(sandbox_id)
    ledger = Ledger(FileJournal(files.ledger, threads))

    async def nothing() -> None:
        return

    await ledger.acquire("lease", Scope.PERSISTENT, LEASE.model_dump(), nothing)
    return files


def directory_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("x")


def cut_in_the_middle(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe_in_its_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "NULs": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}\n"),
    "a short line": cut_in_the_middle,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a deep list": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "a directory": directory_in_its_place,
    "a pipe": pipe_in_its_place,
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_known_of_it_is_salvaged_and_it_can_be_given_up(
    damage: str, layout: Layout, threads: Threads
) -> None:
    files = await stored(layout, threads)
    await stored(layout, threads, "s2")
    DAMAGE[damage](files.record)
    records = RecordStore(layout, threads)
    assert [record.id for record in await records.load_all()] == ["s2"]
    assert list(records.unreadable()) == ["s1"]
    assert "sandboxes/s1/record.json" in records.unreadable()["s1"]
    found = await records.salvage("s1")
    assert found.lease == LEASE
    now = utc_now()
    stand_in = SandboxRecord(
        spec=spec("s1"), intent=Intent.DELETED, created_at=now, changed_at=now
    )
    await records.give_up(stand_in)
    assert {record.id for record in await records.load_all()} == {"s1", "s2"}
    assert records.unreadable() == {}


async def test_names_are_salvaged_from_a_torn_record(
    layout: Layout, threads: Threads
) -> None:
    files = await stored(layout, threads)
    cut_in_the_middle(files.record)
    found = await RecordStore(layout, threads).salvage("s1")
    assert (found.name, found.workspace) == ("name-s1", "w")


async def test_what_is_no_sandbox_is_neither_read_nor_in_the_way(
    layout: Layout, threads: Threads
) -> None:
    (layout.sandboxes / "notes.txt").write_text("hello")
    (layout.sandboxes / "lost+found").mkdir()
    (layout.sandboxes / "link").symlink_to("/etc")
    records = RecordStore(layout, threads)
    assert await records.load_all() == []
    assert records.unreadable() == {}
    assert len(list(layout.sandboxes.iterdir())) == 3


async def test_one_that_was_put_elsewhere_and_linked_to_is_set_aside(
    layout: Layout, threads: Threads, tmp_path: Path
) -> None:
    """Its layers and its machine are somebody's; its delete leaves what the link led to."""
    files, elsewhere = await stored(layout, threads), tmp_path / "larger disk"
    files.root.rename(elsewhere)
    files.root.symlink_to(elsewhere)
    records = RecordStore(layout, threads)
    assert await records.load_all() == []
    assert list(records.unreadable()) == ["s1"]
    assert (await records.salvage("s1")).name == "name-s1"
    (finding,) = unreadable(layout)
    assert (finding.check, finding.level) == ("sandbox s1", "fail")
    now = utc_now()
    stand_in = SandboxRecord(
        spec=spec("s1"), intent=Intent.DELETED, created_at=now, changed_at=now
    )
    await records.give_up(stand_in)
    assert [record.id for record in await records.load_all()] == ["s1"]
    await records.remove("s1", noted=True)
    assert list(layout.sandboxes.iterdir()) == []
    assert (elsewhere / "record.json").is_file()


@pytest.mark.parametrize("which", ["record", "ledger"])
async def test_the_commands_say_what_is_wrong_and_what_to_do(
    which: str,
    loaded: Loaded,
    layout: Layout,
    threads: Threads,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await stored(layout, threads, "good")
    files = await stored(layout, threads)
    getattr(files, which).write_bytes(b"\0\0\0\n")
    (finding,) = unreadable(layout)
    assert (finding.check, finding.level) == ("sandbox s1", "fail")
    assert finding.advice == WAY_OUT
    assert inspect.inspect(loaded, "s1", as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["unreadable"]["reason"] == STATE_UNREADABLE
    assert document["unreadable"]["problems"] == [finding.message]
    assert document["unreadable"]["addresses"] == (
        LEASE.model_dump() if which == "record" else None
    )
    assert inspect.inspect(loaded, "s1", as_json=False) == 0
    text = capsys.readouterr().out
    assert finding.message in text
    assert WAY_OUT in text
    assert inspect.inspect(loaded, "good", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["unreadable"] is None
    shutil.rmtree(files.root)
    assert unread(layout) == []


async def test_a_layer_says_what_it_stands_on(layout: Layout, threads: Threads) -> None:
    disks = DiskStore(layout, threads, Ownership(0, 0))
    base = layout.images / "base"
    base.write_bytes(b"\0" * 2**20)
    names = ("a.00000001", "b.00000001", "b.00000002", "b.deadbeef.00000001")
    paths = [str(layout.layers / f"{name}.qcow2") for name in names]
    for number, path in enumerate(paths):
        backing = (*reversed(paths[:number]), str(base))
        await disks.create_overlay(
            Disk(
                role="root", path=path, format="qcow2", read_only=False, backing=backing
            ),
            None,
        )
    a, b1, b2, other = paths
    assert await disks.own_layers("b") == {b1: (a,), b2: (b1, a)}
    assert list(await disks.own_layers("b")) == [b1, b2]
    assert await disks.own_layers("b.deadbeef") == {other: (b2, b1, a)}
    assert await disks.own_layers("nobody") == {}
    Path(b1).write_bytes(b"QFI\xfb")
    with pytest.raises(StorageError):
        await disks.own_layers("b")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("command", ["inspect", "console"])
def test_who_may_not_look_is_told_so_and_not_that_a_sandbox_is_unknown_or_damaged(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o711)
        layout = Layout(Path(place) / "state")
        layout.make()
        layout.sandbox("s1").root.mkdir(mode=0o700)
        words = ["--state-dir", str(layout.root)]
        assert main([command, "nosuch", *words]) == 2
        assert "nosuch is not known" in capsys.readouterr().err
        os.seteuid(65534)
        try:
            for sandbox in ("s1", "nosuch"):
                assert main([command, sandbox, *words]) == 2
                told = capsys.readouterr()
                assert "you may not look into" in told.err
                assert "run this command as" in told.err
                assert told.out == ""
        finally:
            os.seteuid(0)
