"""Does what code in a machine's QEMU could do, and tells what came of it. A program of its own,
of the standard library alone; root begins it.

usage: python intruder.py, with a JSON object on standard input:
    pid       the process to become: its user, groups, limits, without capabilities
    inside    true: in its namespaces and root directory too; false: in the host's
    open      paths to open; nothing is read or written
    signal    process ids that signal 0 is sent to: it only asks whether one may
    unix      sockets to connect to, abstract ones with an @ before their names
    tcp       [address, port] to connect to
    walk      true: all files that are to be seen, outside of /usr
    exhaust   true: files are opened and memory is asked for until a limit says no
Prints a JSON object with the same names: paths -> "r", "w" or "rw"; what could be signalled or
connected to; files as [path, device, inode, owner, kind]; what the limits said.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import select
import socket
import stat
import sys
import time
from typing import Any

_KINDS = {
    "user": 0x10000000,
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
}
"""linux/sched.h. Not the process namespace: that counts for children only."""
_LIMITS = {
    "Max file size": resource.RLIMIT_FSIZE,
    "Max core file size": resource.RLIMIT_CORE,
    "Max processes": resource.RLIMIT_NPROC,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max address space": resource.RLIMIT_AS,
}
_DROP_BOUNDING, _NO_NEW_PRIVILEGES, _LAST_CAPABILITY = 24, 38, 63
_WALK_S, _MOST_FILES, _CONNECT_S = 10.0, 100_000, 1.0
_MANY_FILES, _HUGE = 8192, 2**46
_libc = ctypes.CDLL(None, use_errno=True)


def _done(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123 - little is imported
        return file.read()


def _namespace(process: object, kind: str) -> str:
    return os.readlink(f"/proc/{process}/ns/{kind}")  # noqa: PTH115


def _limits(pid: int) -> dict[int, tuple[int, int]]:
    found = {}
    for line in _read(f"/proc/{pid}/limits").splitlines():
        which = _LIMITS.get(line[:25].strip())
        if which is not None:
            words = line[25:].split()[:2]
            soft, hard = (-1 if word == "unlimited" else int(word) for word in words)
            found[which] = (soft, hard)
    return found


def become(pid: int, *, inside: bool) -> None:
    """All that is asked for is fetched first: behind the door it is out of sight."""
    lines = _read(f"/proc/{pid}/status").splitlines()
    fields = {name: rest.split() for name, _, rest in (x.partition(":") for x in lines)}
    uid, gid = int(fields["Uid"][0]), int(fields["Gid"][0])
    groups, limits = [int(group) for group in fields["Groups"]], _limits(pid)
    differing = {k for k in _KINDS if _namespace(pid, k) != _namespace("self", k)}
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    handle = os.pidfd_open(pid)
    os.setgroups(groups)
    if inside and differing:
        _done(_libc.setns(handle, sum(_KINDS[kind] for kind in differing)))
    if inside:
        os.fchdir(root)
        os.chroot(".")
    os.close(root)
    os.close(handle)
    for which, values in limits.items():
        resource.setrlimit(which, values)
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_DROP_BOUNDING, capability, 0, 0, 0)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _done(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def opened(paths: list[str]) -> dict[str, str]:
    """How each can be opened; what cannot be is left out."""
    found: dict[str, str] = {}
    for path in paths:
        for flags, way in ((os.O_RDONLY, "r"), (os.O_WRONLY, "w")):
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError:
                continue
            found[path] = found.get(path, "") + way
    return found


def signalled(pids: list[int]) -> list[int]:
    """Those that could be sent any signal."""
    found = []
    for pid in pids:
        try:
            os.kill(pid, 0)
        except OSError:
            continue
        found.append(pid)
    return found


def connected_unix(names: list[str]) -> list[str]:
    """Those that answer, or that could be sent something."""
    found = []
    for name in names:
        address = "\0" + name[1:] if name.startswith("@") else name
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as end:
                end.setblocking(False)
                try:
                    end.connect(address)
                except BlockingIOError:
                    pass  # its backlog is full: it is reached
                except OSError:
                    continue
            found.append(name)
            break
    return found


def connected_tcp(places: list[list[Any]]) -> list[list[Any]]:
    """Those that answer within a second, all asked at once."""
    waiting, poll = {}, select.poll()
    for address, port in places:
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.setblocking(False)
        if end.connect_ex((address, port)) not in {0, errno.EINPROGRESS}:
            end.close()
            continue
        waiting[end.fileno()] = (end, [address, port])
        poll.register(end, select.POLLOUT)
    found, until = [], time.monotonic() + _CONNECT_S
    while waiting and (left := until - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            end, place = waiting.pop(number)
            poll.unregister(number)
            if end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(place)
            end.close()
    for end, _ in waiting.values():
        end.close()
    return found


def walked() -> dict[str, Any]:
    """Every file that is to be seen outside of /usr; of /proc, how many processes."""
    files: list[list[Any]] = []
    pending, until = ["/"], time.monotonic() + _WALK_S
    while pending and len(files) < _MOST_FILES and time.monotonic() < until:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if entry.path in {"/usr", "/proc", "/sys"} or stat.S_ISLNK(found.st_mode):
                continue
            if stat.S_ISDIR(found.st_mode):
                pending.append(entry.path)
                continue
            device = found.st_rdev if stat.S_ISCHR(found.st_mode) else found.st_dev
            kind = stat.filemode(found.st_mode)[0]
            row = [entry.path, device, found.st_ino, found.st_uid, kind]
            files.append(row)
    return {"files": files, "processes": _listed("/proc"), "sys": _listed("/sys")}


def _listed(folder: str) -> int:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return 0
    return sum(name.isdigit() for name in names) if folder == "/proc" else len(names)


def exhausted() -> dict[str, bool]:
    """Whether a limit ends it. Nothing of the machine's is used up: limits of files and memory
    are each process's own.
    """
    held: list[int] = []
    try:
        while len(held) < _MANY_FILES:
            held.append(os.open("/dev/null", os.O_RDONLY))
        files = False
    except OSError:
        files = True
    for descriptor in held:
        os.close(descriptor)
    try:
        mmap.mmap(
            -1, _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
        ).close()
        memory = False
    except (OSError, ValueError):
        memory = True
    return {"files": files, "memory": memory}


def main() -> None:
    """See above."""
    asked = json.load(sys.stdin)
    become(asked["pid"], inside=asked["inside"])
    said: dict[str, Any] = {
        "open": opened(asked.get("open", [])),
        "signal": signalled(asked.get("signal", [])),
        "unix": connected_unix(asked.get("unix", [])),
        "tcp": connected_tcp(asked.get("tcp", [])),
    }
    if asked.get("walk"):
        said["walk"] = walked()
    if asked.get("exhaust"):
        said["exhaust"] = exhausted()
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main()
