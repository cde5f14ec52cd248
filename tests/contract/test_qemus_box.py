"""The box, made by the real bwrap, around a program that looks about and tries things."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_box import FILTER
from vmdriver.errors import CommandError
from vmdriver.host import facts
from vmdriver.host.threads import Threads
from vmdriver.host.users.ids import processes_of
from vmdriver.hypervisor.wall import libraries
from vmdriver.hypervisor.wall.box import BOX_PARTS, Box
from vmdriver.hypervisor.wall.box_trial import BoxTrial
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.wall import WallPart

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")

NOBODY = Ownership(54321, 54320)
EMULATOR = """#!/bin/sh
echo "pid $$"
for path in / /dev /tmp /proc /sys /etc /run /root "$BOX"; do echo "in $path:" $(ls -A "$path" 2>&1); done
echo own >>"$BOX/writes, a file" && echo wrote
(echo other >>"$BOX/reads") 2>&1
(echo new >"/new") 2>&1
(echo new >"/dev/new") 2>&1
cat "$BOX/reads"
id
unshare --user true 2>&1
kill -0 1 2>&1 && echo "may signal the first process"
setpriv --dump | grep no_new_privs
"""


@pytest.fixture(params=["of the shell's", "compiled"])
def boxes(folder: Path, request: pytest.FixtureRequest) -> Boxes:
    """Both programs that may begin QEMU: what is asked of one is asked of the other."""
    boxes = Boxes(folder)
    if request.param == "compiled":
        asyncio.run(boxes.compile())
    return boxes


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("box", 1)
    yield threads
    threads.close()


def looks_about(
    boxes: Boxes, *, nested: bool = False, parts: tuple[WallPart, ...] = BOX_PARTS
) -> str:
    folder = boxes.root / "own folder, with 'quotes'\nand a line"
    folder.mkdir(mode=0o711)
    emulator, reads, writes = (folder / n for n in ("qemu", "reads", "writes, a file"))
    emulator.write_text(EMULATOR)
    emulator.chmod(0o755)
    reads.write_text("what was there\n")
    (folder / "secret of another").write_text("secret")
    for path in (reads, writes):
        path.touch()
        os.chown(path, NOBODY.uid, NOBODY.gid)
    if nested:
        boxes.ground = replace(boxes.ground, no_nesting=False)
    box = Box((str(emulator), str(reads)), (str(writes),), file_bytes=4096, threads=100)
    box = replace(box, memory_mib=64, parts=parts)
    program = boxes.make("m", str(emulator), box)
    user = (f"--reuid={NOBODY.uid}", f"--regid={NOBODY.gid}", "--clear-groups")
    words = ("-name", "guest=m,debug-threads=on", "-sandbox", FILTER)
    begun = subprocess.Popen(
        ["setpriv", *user, program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "/usr/bin:/bin", "BOX": str(folder)},
    )
    said = begun.communicate(timeout=30)[0]
    assert begun.returncode is not None
    assert f"pid {begun.pid}\n" in said, "whoever began it knows QEMU by its process id"
    assert writes.read_text() == "own\n"
    assert "box" not in parts or reads.read_text() == "what was there\n"
    return said


def test_it_sees_and_changes_its_own_files_and_nothing_else(boxes: Boxes) -> None:
    said = looks_about(boxes)
    lines = said.splitlines()
    assert "in /dev: null urandom zero" in lines
    assert "in /etc: ld.so.cache" in lines
    for gone in ("/tmp", "/proc", "/sys", "/run", "/root"):
        if not boxes.root.is_relative_to(gone):
            line = next(x for x in lines if x.startswith(f"in {gone}:"))
            assert line.endswith("No such file or directory"), line
    assert "secret of another" not in said
    assert "wrote" in lines
    assert "what was there" in lines
    assert said.count("Read-only file system") == 3
    assert f"uid={NOBODY.uid} gid={NOBODY.gid} groups={NOBODY.gid}" in lines
    assert "unshare failed: No space left on device" in said
    assert "may signal" not in said


def test_where_nesting_cannot_be_forbidden_the_rest_is_the_same(boxes: Boxes) -> None:
    said = looks_about(boxes, nested=True)
    assert "user-namespaces" not in said
    assert said.count("Read-only file system") == 3


@pytest.mark.parametrize("without", [(), ("seccomp",), ("box",), ("box", "seccomp")])
def test_whatever_the_wall_has_it_gets_no_new_privileges(
    boxes: Boxes, without: tuple[str, ...]
) -> None:
    parts = tuple(part for part in BOX_PARTS if part not in without)
    assert "no_new_privs: 1" in looks_about(boxes, parts=parts).splitlines()


READER = """#!/bin/sh
while [ "$1" != -blockdev ]; do shift; done
for word; do
    case $word in {*) qemu-io -r -c "read 0 512" "json:$word" 2>&1 || echo "not read: $word" ;; esac
done
"""
HOLD = """
import fcntl, os, struct, sys
for path in sys.argv[1:]:
    file = os.open(path, os.O_RDONLY)
    for byte in range(200, 204):  # QEMU: nobody may read, write, resize or grow it
        wanted = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
print("held", flush=True)
sys.stdin.read()
"""


def test_nobody_locks_a_disk_that_machines_share_against_another(boxes: Boxes) -> None:
    """A QEMU that was taken over may read base disks: that is enough for a lock which no other QEMU would start against."""
    folder = boxes.root / "disks"
    folder.mkdir(mode=0o711)
    emulator, shared, own = (folder / n for n in ("qemu", "a base.ext4", "own.img"))
    emulator.write_text(READER)
    emulator.chmod(0o755)
    for path in (shared, own):
        path.write_bytes(b"0" * 4096)
    shared.chmod(0o444)
    os.chown(own, NOBODY.uid, NOBODY.gid)
    box = Box((str(emulator), str(shared)), (str(own),), file_bytes=2**20, threads=100)
    program = boxes.make("m", str(emulator), replace(box, memory_mib=64))
    user = ("setpriv", f"--reuid={NOBODY.uid}", f"--regid={NOBODY.gid}")
    words = ["-name", "guest=m,debug-threads=on", "-sandbox", FILTER]
    for path in (shared, own):
        more = '"node-name":"n","auto-read-only":true,"discard":"unmap"'
        words += ["-blockdev", f'{{"driver":"file","filename":"{path}",{more}}}']
    hold = [sys.executable, "-c", HOLD, str(shared), str(own)]
    with subprocess.Popen(
        hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        done = subprocess.run(
            [*user, "--clear-groups", program, *words],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
            timeout=30,
            check=False,
        )
        holder.communicate()
    assert "read 512/512 bytes" in done.stdout
    refused = [line for line in done.stdout.splitlines() if "not read" in line]
    assert ['"locking"' in line for line in refused] == [False], done.stdout
    assert str(own) in refused[0], "what a machine writes is locked as before"


ASKER = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def said(result):
    return "yes" if result >= 0 else errno.errorcode[ctypes.get_errno()]
for family in range(1, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        print("socket", family, said(libc.socket(family, kind, 0)))
print("high", said(libc.socket(ctypes.c_uint(40), 1, 0)))
print("uring", said(libc.syscall(425, 1, ctypes.create_string_buffer(120))))
print("x32", said(libc.syscall(0x40000000 + 41, 40, 1, 0)))
print("file", said(libc.open(b"/dev/null", 0)))
"""


@pytest.mark.parametrize("boxed", [True, False])
def test_a_qemu_has_no_socket_that_leads_past_its_network_namespace(
    boxes: Boxes, folder: Path, *, boxed: bool
) -> None:
    """Nor the kernel's other way to one, which no filter of system calls sees into."""
    emulator = folder / "asks"
    emulator.write_text(f"#!/bin/sh\nexec /usr/bin/python3 -Ic '{ASKER}'\n")
    emulator.chmod(0o755)
    parts = BOX_PARTS if boxed else ("seccomp", "limits")
    box = Box((str(emulator),), memory_mib=64, file_bytes=2**20, parts=parts)
    program = boxes.make("m", str(emulator), box)
    user = ("setpriv", f"--reuid={NOBODY.uid}", f"--regid={NOBODY.gid}")
    words = ["-name", "guest=m,debug-threads=on", "-sandbox", FILTER]
    done = subprocess.run(
        [*user, "--clear-groups", program, *words],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    sockets = {(int(w[1]), w[2]) for w in found if w[0] == "socket"}
    assert {family for family, answer in sockets if answer == "yes"} <= {1, 2, 10, 16}
    assert (1, "yes") in sockets
    assert (2, "yes") in sockets
    assert {answer for family, answer in sockets if family == 40} == {"EAFNOSUPPORT"}
    assert ["high", "EAFNOSUPPORT"] in found
    assert ["uring", "ENOSYS"] in found
    assert ["x32", "EPERM"] in found or os.uname().machine != "x86_64"
    assert ["file", "yes"] in found


async def test_a_host_that_cannot_compile_begins_qemu_by_the_shells_program(
    folder: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_compiler(*_: object) -> None:
        raise CommandError("gcc cannot be run: No such file or directory")

    monkeypatch.setattr(libraries, "make_program", no_compiler)
    boxes = Boxes(folder)
    offer = await BoxTrial(boxes, threads, "test-trial", NOBODY).offer(None)
    assert (offer.lacks, offer.parts) == ((), BOX_PARTS)
    assert (folder / "boxed-qemu").read_bytes().startswith(b"#!/bin/sh\n")


async def test_programs_that_earlier_releases_have_compiled_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def made(_source: Path, file: Path, _mode: int) -> None:
        file.touch()

    monkeypatch.setattr(libraries, "make_program", made)
    others = {"boxed-qemu", "boxed-qemu-0123", "boxed-qemu-0123456789ab.so", "boot-id"}
    for name in ("boxed-qemu-0123456789ab", "boxed-qemu-0123456789ac.part", *others):
        (folder / name).touch()
    boxes = Boxes(folder)
    await boxes.compile()
    await boxes.compile()
    assert boxes.compiled is not None
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert found == {boxes.compiled.name, *others}


async def test_a_compiled_program_that_cannot_be_run_gives_way_to_the_shells(
    folder: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def for_another_machine(_source: Path, file: Path, mode: int) -> None:
        file.write_bytes(b"\x7fELF" + b"@vmdriver-settings@".ljust(20000, b"\0"))
        file.chmod(mode)

    monkeypatch.setattr(libraries, "make_program", for_another_machine)
    boxes = Boxes(folder)
    offer = await BoxTrial(boxes, threads, "test-trial", NOBODY).offer(None)
    assert (offer.lacks, offer.parts) == ((), BOX_PARTS)
    assert (folder / "boxed-qemu").read_bytes().startswith(b"#!/bin/sh\n")


def test_nothing_of_the_way_into_the_box_is_left(boxes: Boxes, folder: Path) -> None:
    """Neither who held it open nor bwrap goes on; and they had none of QEMU's descriptors as long as they did."""
    emulator = folder / "waits"
    emulator.write_text("#!/bin/sh\nread line\n")
    emulator.chmod(0o755)
    program = boxes.make("m", str(emulator), Box((str(emulator),), memory_mib=64))
    user = ("setpriv", f"--reuid={NOBODY.uid}", f"--regid={NOBODY.gid}")
    words = ["-name", "guest=m,debug-threads=on", "-sandbox", FILTER]
    with subprocess.Popen(
        [*user, "--clear-groups", program, *words], stdin=subprocess.PIPE
    ) as begun:
        deadline = time.monotonic() + 20
        while processes_of(NOBODY.uid) != [begun.pid] or not is_begun(begun.pid):
            assert time.monotonic() < deadline, processes_of(NOBODY.uid)
            time.sleep(0.02)
        begun.communicate(b"\n")
    assert begun.returncode == 0


def is_begun(pid: int) -> bool:
    return b"/waits" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_host_that_can_gives_every_part(boxes: Boxes, threads: Threads) -> None:
    trial = BoxTrial(boxes, threads, "test-trial", NOBODY)
    offer = await trial.offer(None)
    assert offer.lacks == ()
    assert offer.parts == boxes.parts == BOX_PARTS
    assert not list((boxes.root / "boxes").iterdir()), "nothing of the trial is left"


async def test_without_bwrap_the_other_parts_are_given_and_it_is_tried_again(
    boxes: Boxes, threads: Threads
) -> None:
    real, boxes.ground = boxes.ground, replace(boxes.ground, bwrap="/usr/bin/no-bwrap")
    trial = BoxTrial(boxes, threads, "test-trial", NOBODY)
    offer = await trial.offer(None)
    assert [lack.part for lack in offer.lacks] == ["box"]
    assert "bubblewrap" in offer.lacks[0].resolution
    assert offer.parts == ("seccomp", "limits")
    boxes.ground = real
    assert (await trial.offer(None)).lacks == ()


async def test_a_folder_that_nobody_may_execute_in_gives_none(
    boxes: Boxes, threads: Threads
) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec,mode=0711", "t", boxes.root], check=True
    )
    try:
        offer = await BoxTrial(boxes, threads, "test-trial", NOBODY).offer(None)
        assert offer.parts == ()
        assert {lack.part for lack in offer.lacks} == set(BOX_PARTS)
        assert all("noexec" in lack.resolution for lack in offer.lacks), (
            "no package is missing"
        )
    finally:
        subprocess.run(["umount", boxes.root], check=True)


async def test_a_host_without_qemu_is_told_to_install_it(
    boxes: Boxes, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "machine_architecture", lambda: "pdp11")
    offer = await BoxTrial(boxes, threads, "test-trial", NOBODY).offer(None)
    assert {lack.part for lack in offer.lacks} == set(BOX_PARTS)
    for lack in offer.lacks:
        assert "install the program qemu-system-pdp11" in lack.resolution


async def test_a_full_disk_is_no_missing_package(
    boxes: Boxes, threads: Threads
) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=0711", "t", boxes.root],
        check=True,
    )
    try:
        offer = await BoxTrial(boxes, threads, "test-trial", NOBODY).offer(None)
        assert {lack.part for lack in offer.lacks} == set(BOX_PARTS)
        assert all("No space left" in lack.why for lack in offer.lacks)
        assert all("space" in lack.resolution for lack in offer.lacks)
    finally:
        subprocess.run(["umount", boxes.root], check=True)


async def test_a_daemon_that_is_told_not_to_filter_lacks_that_part(
    boxes: Boxes, threads: Threads, folder: Path
) -> None:
    settings = folder / "qemu.conf"
    for text, lacks in (
        ("#seccomp_sandbox = 0\n", []),
        ("seccomp_sandbox = 1\n", []),
        ("user = 'x'\n seccomp_sandbox=0\n", ["seccomp"]),
    ):
        settings.write_text(text)
        offer = await BoxTrial(boxes, threads, "test-trial", NOBODY, settings).offer(
            None
        )
        assert [lack.part for lack in offer.lacks] == lacks
