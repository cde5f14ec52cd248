"""What code that escaped into a QEMU can do to the memory that its machine was made from, and to others made from it."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.adversary.inside import in_machine, two_running
from tests.system.machines import Driver

PAGE = 4096
CHANGE = """
import json, mmap, os, sys
paths, done = json.load(sys.stdin), []
def tried(what, act):
    try:
        act()
    except (OSError, ValueError):  # mmap tells ValueError of what it refuses itself
        return
    done.append(what)
for path in paths:
    for name in ("O_WRONLY", "O_RDWR"):
        tried(f"open {name} {path}", lambda: os.close(os.open(path, getattr(os, name))))
    tried(f"truncate {path}", lambda: os.truncate(path, 0))
    tried(f"chmod {path}", lambda: os.chmod(path, 0o666))
    tried(f"chown {path}", lambda: os.chown(path, os.getuid(), -1))
    tried(f"utime {path}", lambda: os.utime(path))
    tried(f"unlink {path}", lambda: os.unlink(path))
    tried(f"rename {path}", lambda: os.rename(path, path + ".other"))
    tried(f"link {path}", lambda: os.link(path, path + ".other"))
    tried(f"replace {path}", lambda: os.close(os.open(path + ".new", os.O_CREAT | os.O_WRONLY)))
    def shared():
        file = os.open(path, os.O_RDONLY)
        mmap.mmap(file, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    tried(f"shared mapping {path}", shared)
print(json.dumps(done))
"""


@dataclass(frozen=True)
class Mapping:
    """A piece of a process's memory that is a file's."""

    begin: int
    size: int
    rights: str
    offset: int
    path: Path


def mapped_from(pid: int, folder: Path) -> list[Mapping]:
    """Files below that folder that a process has mapped."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and Path(words[5]).is_relative_to(folder):
            begin, end = (int(number, 16) for number in words[0].split("-"))
            offset = int(words[2], 16)
            found.append(Mapping(begin, end - begin, words[1], offset, Path(words[5])))
    return found


def open_for_writing(pid: int, path: Path) -> Iterator[str]:
    """Descriptors of a process that could change that file."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        info = Path(f"/proc/{pid}/fdinfo/{file.name}").read_text().split()
        mode = int(info[info.index("flags:") + 1], 8) & os.O_ACCMODE
        if file.readlink() == path and mode != os.O_RDONLY:
            yield file.name


def at(pid: int, place: int, data: bytes | None = None) -> bytes:
    """A page of a process's memory; written to before, as the process itself could."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        if data is not None:
            memory.seek(place)
            memory.write(data)
        memory.seek(place)
        return memory.read(PAGE)


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Guests that do not write to their memory meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def not_yet_copied(pid: int, mapping: Mapping) -> int:
    """Offset of a page that is still the file's own (Documentation/admin-guide/mm/pagemap.rst: bit 61)."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pages:
        pages.seek(mapping.begin // PAGE * 8)
        entries = pages.read(mapping.size // PAGE * 8)
    for index in range(len(entries) // 8):
        entry = int.from_bytes(entries[index * 8 : index * 8 + 8], "little")
        if entry >> 63 & 1 and entry >> 61 & 1:
            return index * PAGE
    raise AssertionError("it has copied everything")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(driver: Driver, pid: int, folder: Path) -> list[Mapping]:
    """What that machine has mapped from there, and can only read."""
    mappings = mapped_from(pid, folder)
    assert mappings
    for mapping in mappings:
        assert mapping.rights.endswith("p"), f"writes to it are others' too: {mapping}"
        assert list(open_for_writing(pid, mapping.path)) == []
    return mappings


def test_no_fork_can_change_what_forks_are_made_from_nor_another_fork(
    driver: Driver,
) -> None:
    """isolation: pages that a fork has not copied yet are the template's own."""
    first, second = two_running(driver)
    plan = driver.plan(first)
    assert plan["template"] == driver.plan(second)["template"] is not None
    assert "sealed-memory" in plan["wall"]
    one, other = (driver.machine_pid(sandbox) for sandbox in (first, second))
    memory = max(sealed(driver, one, driver.host.state / "templates"), key=_size)
    (root,) = (disk for disk in plan["disks"] if disk["role"] == "root")
    files = [str(memory.path), *root["backing"]]
    before = [digest(Path(path)) for path in files]
    assert in_machine(one, CHANGE, files) == []
    with stopped(one, other):
        mapped = mapped_from(other, memory.path)
        theirs = next(m for m in mapped if m.size == memory.size)
        page = not_yet_copied(other, theirs)
        was, evil = at(other, theirs.begin + page), b"evil" * (PAGE // 4)
        assert at(one, memory.begin + page, evil) == evil
        assert at(other, theirs.begin + page) == was != evil
        with memory.path.open("rb") as file:
            file.seek(memory.offset + page)
            assert file.read(PAGE) == was
    assert [digest(Path(path)) for path in files] == before
    third = driver.create(name="third")
    driver.wait(third, "Running")
    assert driver.plan(third)["template"] == plan["template"]
    for sandbox in (first, second, third):
        assert driver.delete(sandbox)


def _size(mapping: Mapping) -> int:
    return mapping.size


def test_a_resumed_machine_cannot_write_to_the_memory_that_was_kept(
    driver: Driver,
) -> None:
    sandbox = driver.create(name="kept")
    driver.wait(sandbox, "Running")
    driver.suspend(sandbox)
    driver.resume(sandbox)
    pid, folder = driver.machine_pid(sandbox), driver.directory(sandbox)
    files = {str(mapping.path) for mapping in sealed(driver, pid, folder)}
    assert in_machine(pid, CHANGE, sorted(files)) == []
    assert driver.delete(sandbox)
