"""Layers whose header a QEMU wrote that its guest has taken over. Whatever it says, no program and
no process of ours follows it anywhere (row 3 of what stood open: `qemu-img commit` did).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.contract.canary import SECRET, watched
from vmdriver.errors import StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import Disk
from vmdriver.storage.layers import chains, merging, qcow2
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout

MIB = 2**20
TIB = 2**40


@dataclass
class Place:
    layout: Layout
    disks: DiskStore
    canary: Path
    below: Disk
    disk: Disk

    def header(self) -> bytes:
        return Path(self.disk.path).read_bytes()[:4096]

    def write(self, offset: int, data: bytes) -> None:
        with open(self.disk.path, "r+b") as file:
            file.seek(offset)
            file.write(data)


@pytest.fixture
async def place(tmp_path: Path) -> Iterator[Place]:
    """A machine's disk of two layers, both used, and a file of the host's beside it."""
    layout, threads = Layout(tmp_path / "state"), Threads("storage", 2)
    layout.make()
    disks = DiskStore(layout, threads, Ownership(os.getuid(), os.getgid()))
    base, canary = layout.root / "base", tmp_path / "canary"
    with base.open("wb") as file:
        file.truncate(64 * MIB)
    canary.write_bytes(SECRET)
    paths = [str(layout.layers / f"s.0000000{n}.qcow2") for n in (1, 2)]
    made = []
    for number, path in enumerate(paths):
        backing = (*reversed(paths[:number]), str(base))
        disk = Disk(
            role="root", path=path, format="qcow2", read_only=False, backing=backing
        )
        await disks.create_overlay(disk, None)
        write = ["qemu-io", "-c", f"write -q -P {number + 1} {number}M 1M", path]
        subprocess.run(write, check=True)
        made.append(disk)
    yield Place(layout, disks, canary, *made)
    threads.close()


def name(text: str) -> Callable[[Place], None]:
    """Have it stand on something else."""

    def write(place: Place) -> None:
        data = text.replace("CANARY", str(place.canary)).encode()
        place.write(16, len(data).to_bytes(4, "big"))
        at = int.from_bytes(place.header()[8:16], "big")
        place.write(at, data)

    return write


def number(offset: int, layout: str, value: int) -> Callable[[Place], None]:
    return lambda place: place.write(offset, struct.pack(f">{layout}", value))


def extension(kind: int, data: bytes) -> Callable[[Place], None]:
    """Before the format of what is below."""

    def write(place: Place) -> None:
        header = place.header()
        at = int.from_bytes(header[100:104], "big")
        name_at, size = struct.unpack(">QI", header[8:20])
        content = data.replace(b"CANARY", str(place.canary).encode())
        more = struct.pack(">II", kind, len(content))
        more += content.ljust(-(-len(content) // 8) * 8, b"\0")
        rest, named = header[at:name_at], header[name_at : name_at + size]
        place.write(at, more + rest + named)
        place.write(8, (name_at + len(more)).to_bytes(8, "big"))

    return write


def external_data(place: Place) -> None:
    """What was tried: `qemu-img commit` read and wrote any file of the host."""
    extension(0x44415441, b"CANARY")(place)
    place.write(79, b"\x14")
    place.write(95, b"\x02")


def encrypted(place: Place) -> None:
    extension(0x0537BE77, struct.pack(">QQ", 4 * 65536, 4096))(place)
    place.write(32, b"\0\0\0\x02")


def bitmaps(place: Place) -> None:
    extension(0x23852875, struct.pack(">IIQQ", 65535, 0, TIB, TIB))(place)
    place.write(95, b"\x01")


def in_its_place(make: Callable[[Place, Path], None]) -> Callable[[Place], None]:
    def put(place: Place) -> None:
        path = Path(place.disk.path)
        path.unlink()
        make(place, path)

    return put


HOSTILE: dict[str, tuple[Callable[[Place], None], str]] = {
    "external data": (external_data, "data in another file"),
    "external data without the bit": (extension(0x44415441, b"CANARY"), "extension"),
    "on a file of the host": (name("CANARY"), "stands on another"),
    "on a device": (name("/dev/vda"), "stands on another"),
    "on another one by dots": (name("/proc/../CANARY"), "no path"),
    "json": (name('json:{"driver":"file","filename":"CANARY"}'), "no path"),
    "network": (name("nbd://127.0.0.1:10809/x"), "no path"),
    "a relative name": (name("canary"), "no path"),
    "a name with a NUL": (name("/a\0b"), "no path"),
    "no name": (number(8, "Q", 0), "does not say what it stands on"),
    "an endless name": (number(16, "I", 2**32 - 1), "does not say what"),
    "a name elsewhere": (number(8, "Q", TIB), "does not say what"),
    "a format to be guessed": (extension(0xE2792ACA, b"raw"), "extension"),
    "encrypted": (encrypted, "encryption"),
    "bitmaps": (bitmaps, "auto-clear"),
    "internal snapshots": (number(60, "I", 65535), "internal snapshots"),
    "snapshots elsewhere": (number(64, "Q", TIB), "internal snapshots"),
    "lazy counts": (number(80, "Q", 1), "compatible features"),
    "dirty": (number(72, "Q", 0x11), "incompatible features"),
    "another compression": (number(72, "Q", 0x18), "incompatible features"),
    "every feature": (number(72, "Q", 2**64 - 1), "data in another file"),
    "version 2": (number(4, "I", 2), "version"),
    "version 4": (number(4, "I", 4), "version"),
    "clusters of 512 bytes": (number(20, "I", 9), "cluster size"),
    "clusters of 2 GiB": (number(20, "I", 31), "cluster size"),
    "no disk": (number(24, "Q", 0), "disk has"),
    "a disk of 16 EiB": (number(24, "Q", 2**64 - 512), "disk has"),
    "a larger disk than its table": (number(24, "Q", TIB), "table has"),
    "a huge table": (number(36, "I", 2**32 - 1), "table has"),
    "a table at 1 TiB": (number(40, "Q", TIB), "no room"),
    "a table in the header": (number(40, "Q", 0), "no room"),
    "counts at 1 TiB": (number(48, "Q", TIB), "no room"),
    "counts without end": (number(56, "I", 2**32 - 1), "no room"),
    "wide counts": (number(96, "I", 6), "width of reference counts"),
    "a huge header": (number(100, "I", 2**32 - 8), "header has"),
    "no header": (number(100, "I", 0), "header has"),
    "an endless extension": (number(116, "I", 2**32 - 1), "no end"),
    "another file": (number(0, "I", 0), "no qcow2 file"),
    "a link": (
        in_its_place(lambda p, path: path.symlink_to(p.canary)),
        "cannot be read",
    ),
    "a pipe": (in_its_place(lambda _, path: os.mkfifo(path)), "cannot be read"),
    "a folder": (in_its_place(lambda _, path: path.mkdir()), "cannot be read"),
    "a device": (
        in_its_place(
            lambda _, path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        ),
        "cannot be read",
    ),
    "a socket": (in_its_place(lambda _, path: _listen(path)), "cannot be read"),
    "nothing": (in_its_place(lambda _, path: path.touch()), "shorter"),
}


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


async def each_use(place: Place) -> list[StorageError]:
    """Whatever the driver does with a layer that a machine wrote to: each says no."""
    disks, disk = place.disks, place.disk
    above = disk.model_copy(
        update={
            "path": str(place.layout.layers / "s.00000003.qcow2"),
            "backing": (disk.path, *disk.backing),
        }
    )
    said = []
    for use in (
        lambda: disks.check_layers(disk),
        lambda: disks.merge_layer(disk, None),
        lambda: disks.create_overlay(above, None),
        lambda: disks.check_layers(above),
    ):
        with pytest.raises(StorageError) as raised:
            await use()
        said.append(raised.value)
    assert not os.path.exists(above.path)
    return said


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_header_leads_nobody_anywhere(what: str, place: Place) -> None:
    make, reason = HOSTILE[what]
    await place.disks.check_layers(place.disk)
    make(place)
    was = os.lstat(place.disk.path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watched(place.canary):
        async with asyncio.timeout(5):
            said = await each_use(place)
            # None of these needs it to be whole, but they read it.
            for use in (
                lambda: place.disks.own_layers("s"),
                lambda: place.disks.is_whole(place.disk.path, place.below.path),
                lambda: place.disks.freeze_layer(place.disk.path, None),
            ):
                try:
                    await use()
                except (StorageError, OSError) as error:
                    assert str(error)
    assert all(reason in error.message for error in said), said[0].message
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16 * 1024, f"{grown} KiB more"
    now = os.lstat(place.disk.path)
    assert (now.st_ino, now.st_size) == (was.st_ino, was.st_size), "it is left as it is"


@pytest.mark.parametrize("what", ["external data", "on a file of the host", "a link"])
async def test_a_layer_below_is_looked_at_as_well(what: str, place: Place) -> None:
    """It was on top once."""
    top = place.disk
    place.disk = place.below
    HOSTILE[what][0](place)
    with watched(place.canary):
        for use in (
            place.disks.check_layers,
            partial(place.disks.merge_layer, user=None),
        ):
            with pytest.raises(StorageError, match=HOSTILE[what][1]):
                await use(top)
        if what == "on a file of the host":
            # Named as the raw disk below all layers, which nobody opens to know them.
            assert await place.disks.own_layers("s")
            return
        with pytest.raises(StorageError):
            await place.disks.own_layers("s")


async def test_a_header_is_refused_wherever_it_is_cut_off(place: Place) -> None:
    path = Path(place.disk.path)
    whole, copy = path.read_bytes(), path.with_name("copy")
    at, size = struct.unpack(">QI", whole[8:20])
    for length in range(at + size):
        copy.write_bytes(whole[:length])
        with pytest.raises(StorageError, match="not as this driver writes it"):
            qcow2.read(copy)
        # The same in a file of the right size.
        with pytest.raises(ValueError, match=r"."):
            qcow2.parse(whole[:length], len(whole))


async def test_no_bit_of_a_header_goes_unnoticed(place: Place) -> None:
    """But for the size of the disk, within the same table, and where in the file its tables are."""
    whole, size = place.header(), os.stat(place.disk.path).st_size
    good = qcow2.parse(whole, size)
    for byte in range(good_end := whole.index(b"/") + len(good.backing)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[byte] ^= 1 << bit
            try:
                found = qcow2.parse(bytes(changed), size)
            except ValueError:
                continue
            other_name = not chains.stands_on(found, place.below.path)
            inside = 24 <= byte < 32 or 40 <= byte < 60
            assert other_name or inside, f"byte {byte} bit {bit}: {found}"
    assert good_end > 140


async def test_an_own_header_is_what_qemus_own_program_makes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for mib in (1, 255, 256, 257, 10 * 1024, 3 * 2**20):
        with base.open("wb") as file:
            file.truncate(mib * MIB)
        made, ours = tmp_path / "made", tmp_path / "ours"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base]
        options = ["-o", "extended_l2=on,cluster_size=64k", made]
        subprocess.run([*command, *options], check=True)
        content = qcow2.blank(mib * MIB, str(base), "raw")
        with ours.open("wb") as file:
            file.truncate(content.size)
            for offset, data in content.parts:
                file.seek(offset)
                file.write(data)
        assert qcow2.read(ours) == qcow2.read(made)
        theirs, found = made.read_bytes(), ours.read_bytes()
        assert found[65536:] == theirs[65536:]
        # All but where the name is, since the features' names are not there.
        assert found[:8] + found[16:112] == theirs[:8] + theirs[16:112]
        check = ["qemu-img", "check", "-q", ours]
        subprocess.run(check, check=True)
        made.unlink()


@pytest.mark.parametrize("how", ["open", "mapped"])
async def test_a_layer_that_somebody_holds_on_to_is_not_one_for_others(
    how: str, place: Place
) -> None:
    """A machine that was told to write elsewhere could go on changing what others stand on."""
    path = place.disk.path
    with open(path, "rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ):
        await place.disks.freeze_layer(path, None)
    os.chmod(path, 0o600)
    with contextlib.ExitStack() as held:
        with open(path, "r+b") as writer:
            if how == "mapped":
                held.enter_context(mmap.mmap(writer.fileno(), 0))
            else:
                held.callback(os.close, os.dup(writer.fileno()))
        with pytest.raises(StorageError, match="can still be written to") as raised:
            await place.disks.freeze_layer(path, None)
        assert raised.value.reason == "LayerHeld"
    await place.disks.freeze_layer(path, None)


async def test_a_merge_follows_no_name_out_of_a_header(place: Place) -> None:
    """Even if nobody had looked: each layer is named, with its format."""
    HOSTILE["on a file of the host"][0](place)
    with watched(place.canary):
        subprocess.run(merging.command(place.disk), check=True)
    for mib, pattern in ((0, 1), (1, 2)):
        read = ["qemu-io", "-c", f"read -P {pattern} {mib}M 1M", place.below.path]
        done = subprocess.run(read, check=True, capture_output=True, text=True)
        assert "verification failed" not in done.stdout


async def test_a_merge_heeds_no_lock_on_what_others_read_too(place: Place) -> None:
    """Every machine may read the base: one that was taken over could keep others' layers from being merged."""
    with open(place.disk.backing[-1], "rb") as file:
        for byte in range(200, 204):  # QEMU: nobody may read, write, resize or grow it
            wanted = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
        await place.disks.merge_layer(place.disk, None)
    read = ["qemu-io", "-c", "read -P 2 1M 1M", place.below.path]
    done = subprocess.run(read, check=True, capture_output=True, text=True)
    assert "verification failed" not in done.stdout
