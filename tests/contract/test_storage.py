"""Records, journal and disks on a real file system."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.driver import spec
from vmdriver.errors import AlreadyExists, InvalidRequest, Refused, StorageError
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.phase import Phase
from vmdriver.model.plan import Disk
from vmdriver.model.record import SandboxRecord, utc_now
from vmdriver.storage import files
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs.supervisors import SupervisorDisks
from vmdriver.storage.sandboxes.journal import FileJournal
from vmdriver.storage.sandboxes.records import RecordStore


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("storage", 2)
    yield threads
    threads.close()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


@pytest.fixture
def records(layout: Layout, threads: Threads) -> RecordStore:
    return RecordStore(layout, threads)


def record(sandbox_id: str = "s1") -> SandboxRecord:
    return SandboxRecord(
        spec=spec(sandbox_id), created_at=utc_now(), changed_at=utc_now()
    )


async def test_records_come_back_as_they_were(
    records: RecordStore, layout: Layout
) -> None:
    await records.create(record(), SecretStr("t"))
    changed = record().model_copy(update={"phase": Phase.RUNNING})
    await records.save(changed)
    assert await records.load_all() == [changed]
    assert (await records.token("s1")).get_secret_value() == "t"
    for path in (layout.sandbox("s1").record, layout.sandbox("s1").token):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(AlreadyExists):
        await records.create(record(), None)
    for _ in range(2):
        await records.remove("s1", noted=False)
    assert list(layout.sandboxes.iterdir()) == []


async def test_what_is_gone_stays_known_for_a_while(
    records: RecordStore, layout: Layout
) -> None:
    await records.create(record(), None)
    layout.sandbox("s1").suspended.mkdir()
    await records.remove("s1", noted=True)
    assert list(layout.sandboxes.iterdir()) == []
    assert list((layout.deleted / "s1").iterdir()) == []
    assert 0 <= (await records.deleted(900))["s1"] < 100
    await records.forget_deleted(900)
    assert list(await records.deleted(900)) == ["s1"]
    await records.create(record(), None)
    assert await records.deleted(900) == {}, "it is there again"
    await records.remove("s1", noted=True)
    os.utime(layout.deleted / "s1", (0, 0))
    await records.forget_deleted(900)
    assert list(layout.deleted.iterdir()) == []


async def test_a_driver_killed_while_it_removes_a_record_has_noted_it(
    records: RecordStore, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    await records.create(record(), SecretStr("t"))
    os.utime(layout.sandbox("s1").root, (0, 0))

    def killed(_path: Path) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", killed)
        with pytest.raises(OSError, match="killed"):
            await records.remove("s1", noted=True)
    assert await records.load_all() == []
    assert list(await records.deleted(900)) == ["s1"]
    assert list((layout.deleted / "s1").iterdir()) == []


async def test_a_delete_needs_no_note(records: RecordStore, layout: Layout) -> None:
    await records.create(record(), None)
    layout.deleted.rmdir()
    await records.remove("s1", noted=True)
    assert list(layout.sandboxes.iterdir()) == []
    assert await records.deleted(900) == {}
    await records.forget_deleted(900)
    await records.create(record(), None)


async def test_a_half_made_sandbox_never_was(
    records: RecordStore, layout: Layout
) -> None:
    (layout.sandboxes / ".new-s1").mkdir()
    (layout.sandboxes / ".new-s1" / "record.json").write_text("{")
    assert await records.load_all() == []
    assert list(layout.sandboxes.iterdir()) == []


async def test_a_create_whose_place_cannot_be_made_durable_was_none(
    records: RecordStore, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is there by then; it would come back with the next driver, and be in the way of a
    second try.
    """

    def broken(path: Path) -> None:
        if path == layout.sandboxes:
            raise OSError(errno.EIO, "Input/output error")

    new = record()
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_directory", broken)
        with pytest.raises(StorageError):
            await records.create(new, None)
    assert await records.load_all() == []
    await records.create(new, None)
    assert await records.load_all() == [new]


async def test_a_damaged_record_is_left_alone_and_harms_no_other(
    records: RecordStore, layout: Layout
) -> None:
    await records.create(record("good"), None)
    await records.create(record("bad"), None)
    layout.sandbox("bad").record.write_text("not json")
    assert [r.id for r in await records.load_all()] == ["good"]
    assert layout.sandbox("bad").record.exists()


async def test_a_link_in_place_of_a_sandbox_is_not_followed(
    records: RecordStore, layout: Layout, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (layout.sandboxes / "evil").symlink_to(precious)
    with pytest.raises(StorageError, match="is a link"):
        await records.remove("evil", noted=True)
    assert precious.exists()
    with pytest.raises(InvalidRequest):
        layout.sandbox("../precious")


async def test_a_torn_last_line_is_forgotten_and_overwritten(
    layout: Layout, threads: Threads
) -> None:
    path = layout.root / "ledger"
    journal = FileJournal(path, threads)
    await journal.append({"op": "intent", "key": "a", "scope": "runtime", "data": {}})
    with path.open("ab") as file:
        file.write(b'{"op":"int')
    assert len(journal.read()) == 1
    await journal.append({"op": "done", "key": "a"})
    assert [line["op"] for line in journal.read()] == ["intent", "done"]
    path.write_bytes(b"garbage\n")
    with pytest.raises(StorageError, match="damaged"):
        journal.read()


async def test_a_ledger_stays_small_over_many_lives(
    layout: Layout, threads: Threads
) -> None:
    path = layout.root / "ledger"
    ledger = Ledger(FileJournal(path, threads))

    async def nothing(*_: object) -> None:
        return

    await ledger.acquire("kept", Scope.PERSISTENT, {"x": 1}, nothing)
    for _ in range(60):
        await ledger.acquire("run", Scope.RUNTIME, {}, nothing)
        assert await ledger.release(Scope.RUNTIME, nothing) == []
    assert len(path.read_bytes().splitlines()) < 80
    again = Ledger(FileJournal(path, threads))
    assert [(h.key, h.done, dict(h.data)) for h in again.held()] == [
        ("kept", True, {"x": 1})
    ]


@pytest.fixture
def disks(layout: Layout, threads: Threads) -> DiskStore:
    return DiskStore(layout, threads, Ownership(os.getuid(), os.getgid()))


@pytest.fixture
def supervisors(layout: Layout, threads: Threads) -> SupervisorDisks:
    return SupervisorDisks(layout, threads, numbers=UserNamespace())


async def test_a_layer_is_whole_on_a_disk_that_takes_it_in_parts(
    disks: DiskStore, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, write = layout.root / "base", os.pwrite
    base.write_bytes(b"\0" * 2**20)
    paths = [layout.root / name for name in ("whole.qcow2", "parts.qcow2")]
    for path in paths:
        disk = Disk(
            role="root",
            path=str(path),
            format="qcow2",
            read_only=False,
            backing=(str(base),),
        )
        await disks.create_overlay(disk, None)
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:7], at))
    assert paths[0].read_bytes() == paths[1].read_bytes()


async def test_an_overlay_is_made_on_its_base_and_removed(
    disks: DiskStore, layout: Layout
) -> None:
    base, path = layout.root / "base", layout.root / "root.qcow2"
    base.write_bytes(b"\0" * 2**20)
    disk = Disk(
        role="root",
        path=str(path),
        format="qcow2",
        read_only=False,
        backing=(str(base),),
    )
    for _ in range(2):
        await disks.create_overlay(disk, None)
    assert path.read_bytes()[:4] == b"QFI\xfb"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for _ in range(2):
        await disks.remove(str(path))
    with pytest.raises(StorageError, match="not ours"):
        await disks.remove("/etc/passwd")


async def test_a_layer_is_frozen_and_merged_into_the_one_below(
    disks: DiskStore, layout: Layout
) -> None:
    base = layout.root / "base"
    base.write_bytes(b"\0" * 2**20)
    layout.layers.mkdir(exist_ok=True)
    paths = [str(layout.layers / f"{n}.qcow2") for n in "ab"]
    for number, path in enumerate(paths):
        backing = (*reversed(paths[:number]), str(base))
        disk = Disk(
            role="root", path=path, format="qcow2", read_only=False, backing=backing
        )
        await disks.create_overlay(disk, None)
        pattern = f"write -P {number + 1} {number * 4096} 4096"
        subprocess.run(
            ["qemu-io", "-c", pattern, path], check=True, capture_output=True
        )
    assert sorted(await disks.layers()) == paths
    assert await disks.freeze_layer(paths[0], None) > 0
    assert stat.S_IMODE(os.stat(paths[0]).st_mode) == 0o400
    for _ in range(2):
        await disks.merge_layer(disk, None)
    await disks.remove(paths[1])
    for number in range(2):
        check = f"read -P {number + 1} {number * 4096} 4096"
        done = subprocess.run(
            ["qemu-io", "-c", check, paths[0]],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "verification failed" not in done.stdout


async def test_a_console_is_cut_and_keeps_its_end(
    disks: DiskStore, layout: Layout
) -> None:
    path = layout.root / "console.log"
    with path.open("ab") as writer:
        writer.write(b"x" * 3_000_000 + b"the end")
        writer.flush()
        await disks.bound_console(str(path))
        assert path.stat().st_size < 400_000
        writer.write(b" and more")  # as QEMU does, with O_APPEND
    assert (await disks.console_tail(str(path))).endswith("the end and more")


async def test_a_supervisor_disk_is_made_once_per_content(
    supervisors: SupervisorDisks, layout: Layout
) -> None:
    program = layout.root / "sup"
    program.write_text("#!/bin/sh\n")
    first = await supervisors.disk(program)
    assert await supervisors.disk(program) == first
    program.write_text("#!/bin/sh\ntrue\n")
    assert await supervisors.disk(program) != first
    assert len(list(layout.supervisors.glob("*.img"))) == 2
    with pytest.raises(Refused, match="supervisor_path"):
        try:
            await supervisors.disk(layout.root / "missing")
        except Refused as error:
            raise Refused(error.text()) from error


def compile_program(path: Path, *options: str, text: str = "") -> Path:
    source = text or 'int puts(const char *); int main(void) { puts("up"); return 7; }'
    command = ["gcc", "-x", "c", "-", "-o", path, "-x", "none", *options]
    subprocess.run(command, input=source.encode(), check=True, capture_output=True)
    return path


def on_disk(disk: Path, request: str) -> str:
    command = ["debugfs", "-R", request, str(disk)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_a_dynamic_supervisor_brings_its_loader_and_libraries(
    supervisors: SupervisorDisks, tmp_path: Path
) -> None:
    library = tmp_path / "root" / "usr" / "lib" / "libown.so.1"
    library.parent.mkdir(parents=True)
    text = "int own(void) { return 3; }"
    compile_program(library, "-shared", "-Wl,-soname,libown.so.1", text=text)
    program = tmp_path / "root" / "program"
    text = "int own(void); int main(void) { return own(); }"
    compile_program(program, str(library), text=text)
    root = tmp_path / "root"
    with pytest.raises(Refused, match=r"ld-linux|libc\.so"):
        await supervisors.disk(program, root)
    for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"):
        home = root / "opt" / "libc"
        home.mkdir(parents=True, exist_ok=True)
        (home / Path(path).name).write_bytes(Path(path).read_bytes())
    (root / "lib64").symlink_to("/opt/libc")  # absolute: of that root, not of this host
    disk = await supervisors.disk(program, root)
    names = on_disk(disk, "ls -p /lib")
    for name in ("ld-linux-x86-64.so.2", "libc.so.6", "libown.so.1"):
        assert f"/{name}/" in names
    copy = tmp_path / "copy"
    on_disk(disk, f"dump /openshell-sandbox {copy}")
    header = subprocess.run(
        ["readelf", "-ldW", copy], capture_output=True, text=True, check=True
    ).stdout
    assert "/opt/openshell/bin/lib/ld-linux-x86-64.so.2]" in header
    assert "rpath: [/opt/openshell/bin/lib]" in header


async def test_a_static_supervisor_or_a_script_is_taken_as_it_is(
    supervisors: SupervisorDisks, tmp_path: Path
) -> None:
    static = compile_program(tmp_path / "static", "-static")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    for program in (static, script):
        disk = await supervisors.disk(program)
        copy = tmp_path / "copy"
        on_disk(disk, f"dump /openshell-sandbox {copy}")
        assert copy.read_bytes() == program.read_bytes()
        assert "/lib/" not in on_disk(disk, "ls -p /")


async def test_supervisor_disks_that_nobody_has_go_after_a_while(
    supervisors: SupervisorDisks,
    layout: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    for text in ("one", "two", "three"):
        program = tmp_path / text
        program.write_text(text)
        made.append(await supervisors.disk(program))
    old = time.time() - 7200
    for disk in made[:2]:
        os.utime(disk.with_suffix(".used"), (old, old))
    assert await supervisors.collect({str(made[0])}) == [], (
        "the wall clock may have jumped while a create that got it is under way"
    )
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 3601)
    assert await supervisors.collect({str(made[0])}) == [str(made[1])]
    monkeypatch.undo()
    left = sorted(layout.supervisors.glob("*.img"))
    assert left == sorted([made[0], made[2]])
    before = made[0].stat()
    assert await supervisors.disk(tmp_path / "one") == made[0]
    assert made[0].stat() == before, "checkpoints know it by its times"
    assert await supervisors.disk(tmp_path / "two") == made[1], "and can come back"


async def test_a_librarys_name_cannot_lead_outside_the_disk(
    supervisors: SupervisorDisks, tmp_path: Path
) -> None:
    evil = tmp_path / "outside" / "evil"
    evil.parent.mkdir()
    library = tmp_path / "lib.so"
    text = "int own(void) { return 3; }"
    compile_program(library, "-shared", f"-Wl,-soname,{evil}", text=text)
    program = tmp_path / "program"
    text = "int own(void); int main(void) { return own(); }"
    compile_program(program, str(library), text=text)
    inside = Path(f"{tmp_path}/root{evil}")
    inside.parent.mkdir(parents=True)
    inside.write_bytes(library.read_bytes())
    home = tmp_path / "root" / "lib64"
    home.mkdir()
    for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"):
        (home / Path(path).name).write_bytes(Path(path).read_bytes())
    with pytest.raises(Refused, match="evil"):
        await supervisors.disk(program, tmp_path / "root")
    assert list(evil.parent.iterdir()) == []


@pytest.fixture
def small_layout(tmp_path: Path) -> Iterator[Layout]:
    """On a file system of 1 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(root)]
    subprocess.run(mount, check=True)
    layout = Layout(root)
    layout.make()
    yield layout
    subprocess.run(["umount", str(root)], check=True)


async def test_a_wish_is_stored_on_a_disk_without_a_single_free_block(
    small_layout: Layout, threads: Threads
) -> None:
    records = RecordStore(small_layout, threads)
    await records.create(record(), None)
    ballast = (small_layout.root / "ballast").open("wb", buffering=0)
    with ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space"):
        (small_layout.root / "another").write_bytes(b"x")
    for phase in (Phase.STOPPING, Phase.STOPPED, Phase.DELETING):
        changed = record().model_copy(update={"phase": phase})
        await records.save(changed)
        assert [r.phase for r in await records.load_all()] == [phase]
    too_long = changed.model_copy(update={"note": "x" * 2**20})
    with pytest.raises(StorageError, match="No space"):
        await records.save(too_long)
    assert [r.phase for r in await records.load_all()] == [Phase.DELETING]
