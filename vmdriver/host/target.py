"""What root sees of one process and of the host around it: the facts that an attack from that
process is compared with. Reads /proc; changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
Identity = tuple[int, int]
"""Device and inode of a file: what it is, whatever it is called."""


@dataclass(frozen=True)
class Held:
    """A file that the process has open or mapped."""

    path: str
    identity: Identity
    for_writing: bool


@dataclass(frozen=True)
class Facts:
    """Of one process, and of all others."""

    pid: int
    uids: frozenset[int]
    """Real, effective, saved, of the file system."""
    gids: frozenset[int]
    """The same, and further groups."""
    capabilities: bool
    """Whether it has, or could get, any."""
    no_new_privileges: bool
    filtered: bool
    """Whether each of its threads has a filter of system calls."""
    own_network: bool
    """Whether its network namespace is another than ours."""
    limits: dict[str, int | None]
    """Hard limits as /proc/<pid>/limits calls them; None: unlimited."""
    oom_score_adj: int
    family: tuple[int, ...]
    """It, its parent and its children, as far as they have that user."""
    same_user: tuple[int, ...]
    """Other processes of that user."""
    held: tuple[Held, ...]
    """Plain files."""
    cgroup: dict[str, str]
    """The limits of its cgroup v2, by file name; {}: it has none that can be read."""


@dataclass(frozen=True)
class Surroundings:
    """What there is on the host to be attacked."""

    processes: tuple[int, ...]
    tcp: tuple[tuple[str, int], ...]
    """Where somebody listens, IPv4."""
    unix: tuple[str, ...]
    """Sockets by path; abstract ones with an @ before their names."""


def facts(pid: int) -> Facts:
    """OSError when it has ended."""
    fields = _status(pid)
    uids = frozenset(int(word) for word in fields["Uid"])
    groups = (*fields["Gid"], *fields.get("Groups", []))
    family, others = _same_user(pid, uids, fields)
    threads = [_status(pid, thread) for thread in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
    return Facts(
        pid=pid,
        uids=uids,
        gids=frozenset(int(word) for word in groups),
        capabilities=any(int(fields[name][0], 16) for name in _CAPABILITIES[:3]),
        no_new_privileges=fields["NoNewPrivs"] == ["1"],
        filtered=all(thread["Seccomp"] == ["2"] for thread in threads),
        own_network=_namespace(pid, "net") != _namespace("self", "net"),
        limits=_limits(pid),
        oom_score_adj=int((_PROC / str(pid) / "oom_score_adj").read_text()),
        family=family,
        same_user=others,
        held=tuple(_held(pid)),
        cgroup=_cgroup(pid),
    )


def surroundings() -> Surroundings:
    """Of this process's own network namespace."""
    listening = []
    for line in (_PROC / "net" / "tcp").read_text().splitlines()[1:]:
        words = line.split()
        address, _, port = words[1].partition(":")
        if words[3] == _LISTENS:
            numbers = bytes.fromhex(address)[::-1]
            text = ".".join(str(number) for number in numbers)
            reached = text if any(numbers) else "127.0.0.1"
            listening.append((reached, int(port, 16)))
    lines = (_PROC / "net" / "unix").read_text(errors="surrogateescape").splitlines()
    split = (line.split(maxsplit=7) for line in lines[1:])
    names = {words[7] for words in split if len(words) > 7}
    return Surroundings(
        tuple(pid for pid, _ in _running()),
        tuple(sorted(set(listening))),
        tuple(sorted(name for name in names if name[:1] in {"@", "/"})),
    )


def identity(path: Path) -> Identity | None:
    """None when there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _status(pid: int, thread: str = "") -> dict[str, list[str]]:
    path = _PROC / str(pid) / (f"task/{thread}/status" if thread else "status")
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: rest.split() for name, _, rest in lines}


def _namespace(process: object, kind: str) -> Path:
    return (_PROC / str(process) / "ns" / kind).readlink()


def _limits(pid: int) -> dict[str, int | None]:
    lines = (_PROC / str(pid) / "limits").read_text().splitlines()[1:]
    words = ((line[:25].strip(), line[25:].split()[1]) for line in lines)
    return {name: None if w == "unlimited" else int(w) for name, w in words}


def _same_user(
    pid: int, uids: frozenset[int], fields: dict[str, list[str]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Its family, and others."""
    family: list[int] = []
    others: list[int] = []
    for one, found in _running():
        if uids & {int(word) for word in found["Uid"]}:
            near = str(one) in fields["PPid"] or str(pid) in found["PPid"]
            (family if near or one == pid else others).append(one)
    return tuple(family), tuple(others)


def _running() -> Iterator[tuple[int, dict[str, list[str]]]]:
    """Every process with its status; one that has ended and waits to be noticed is none."""
    for path in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found = _status(int(path.name))
            if found["State"][0] not in {"Z", "X"}:
                yield int(path.name), found


def _held(pid: int) -> Iterator[Held]:
    """Open descriptors, then mappings: a file may be mapped and closed."""
    home = _PROC / str(pid)
    for path in (home / "fd").iterdir():
        with contextlib.suppress(OSError, ValueError):
            found = path.stat()
            text = (home / "fdinfo" / path.name).read_text()
            flags = int(text.partition("flags:")[2].split()[0], 8)
            if stat.S_ISREG(found.st_mode):
                writing = flags & os.O_ACCMODE != os.O_RDONLY
                name = str(path.readlink())
                yield Held(name, (found.st_dev, found.st_ino), writing)
    for line in (home / "maps").read_text(errors="surrogateescape").splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("/") and words[4] != "0":
            major, minor = (int(number, 16) for number in words[3].split(":"))
            shared = words[1].endswith("s") and "w" in words[1]
            yield Held(words[5], (os.makedev(major, minor), int(words[4])), shared)


def _cgroup(pid: int) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):
        text = (_PROC / str(pid) / "cgroup").read_text()
        place = next((li[3:] for li in text.splitlines() if li.startswith("0::")), "")
        for name in ("memory.max", "pids.max", "cpu.max"):
            limit = Path("/sys/fs/cgroup") / place.lstrip("/") / name
            with contextlib.suppress(OSError):
                found[name] = limit.read_text().strip()
    return found
