"""Programs that a driver had begun and that outlived it: how they are known, and their end.

Two kinds. A *helper* (umoci, skopeo, mke2fs, …) and all that it begins carry a mark in their
environment: the state directory, and a token of the one driver process that ran them. A *probe*
is a QEMU that libvirt, inside a driver's process, asks what it can do; libvirt daemonises it and
gives it an environment of its own, but its monitor's socket lies below libvirt's root, which is
one state directory's (libvirt 9.0: `-machine none,… -qmp unix:ROOT/lib/qemu/qmp-…/qmp.monitor`).
That name is as the probe sees it: two drivers below closed folders each have their own mount of
one name, so what is found there is compared, not the name alone. Machines are neither.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "VMDRIVER_HELPER_OF"
_LOOK_AGAIN_S = 0.02
_BECOMING_S, _BECOMING_TRIES = 0.001, 20


@dataclass(frozen=True)
class Process:
    """What the kernel says of one, at one moment."""

    pid: int
    arguments: tuple[bytes, ...]
    environment: frozenset[bytes]


def mark(state_dir: Path, token: str) -> str:
    """The variable's value in helpers of one driver process."""
    return f"{token}:{state_dir}"


def is_helper(
    process: Process, state_dir: Path, *, of: str = "", but: str = ""
) -> bool:
    """Whether it is a helper for that state directory: of the driver process with the token
    `of` alone, or of every one but `but`.
    """
    for entry in process.environment:
        name, _, value = entry.partition(b"=")
        token, _, owner = value.partition(b":")
        if name == VARIABLE.encode() and owner == os.fsencode(state_dir):
            return token == of.encode() if of else token != but.encode()
    return False


def is_probe(process: Process, roots: Sequence[str]) -> bool:
    """Whether it is a probe of the libvirt whose root has one of these names."""
    words = process.arguments
    if not words or not Path(os.fsdecode(words[0])).name.startswith("qemu"):
        return False
    bare = any(
        option == b"-machine" and value.split(b",")[0] == b"none"
        for option, value in itertools.pairwise(words)
    )
    return bare and any(
        word.startswith(f"unix:{root}/lib/qemu/qmp-".encode())
        and _is_ours(process.pid, root, roots)
        for word in words
        for root in roots
    )


def _is_ours(pid: int, root: str, roots: Sequence[str]) -> bool:
    """Whether the folder that a process calls `root` is one that we call so, or otherwise."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/ns/mnt").samefile("/proc/self/ns/mnt"):
            return True  # also where it is deleted
    return any(_same_folder(f"/proc/{pid}/root{root}", name) for name in roots)


def _same_folder(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def end(is_stray: Callable[[Process], bool], deadline_s: float = 5.0) -> int:
    """Kill every such process, and look again until there is none, or `deadline_s` has passed:
    one that the kernel holds is not waited for for ever. Blocking. How often one was killed.
    """
    begun, count = time.monotonic(), 0
    while found := end_once(is_stray):
        count += found
        if time.monotonic() - begun > deadline_s:
            break
        time.sleep(_LOOK_AGAIN_S)
    return count


def end_once(is_stray: Callable[[Process], bool]) -> int:
    """Kill every such process that is there now. How many that were."""
    return sum(_kill(pid, is_stray) for pid in _pids())


def _pids() -> list[int]:
    own = os.getpid()
    found = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names are all that is needed
    return [pid for pid in found if pid != own]


def values_of(variable: str) -> set[str]:
    """What that variable says in every process that has it."""
    return set(bearers_of(variable))


def bearers_of(variable: str) -> dict[str, list[int]]:
    """The same, with the ids of the processes in which it says so."""
    begin, found = f"{variable}=".encode(), dict[str, list[int]]()
    for pid in _pids():
        process = _read(pid)
        for entry in process.environment if process else ():
            if entry.startswith(begin):
                said = os.fsdecode(entry.removeprefix(begin))
                found.setdefault(said, []).append(pid)
    return found


def _kill(pid: int, is_stray: Callable[[Process], bool]) -> bool:
    """True if it was one. The descriptor is opened first: whoever has that number later is
    not the one that is killed.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        process = _read(pid)
        if process is None or not is_stray(process):
            return False
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    finally:
        os.close(descriptor)


def _read(pid: int) -> Process | None:
    """None for one that has ended, or that we may not look at: it is not ours then."""
    begun = False
    try:
        for _ in range(_BECOMING_TRIES):
            variables = Path(f"/proc/{pid}/environ").read_bytes()
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if variables or begun:
                break
            # It may have begun since its environment was read.
            begun = bool(words)
            if not begun:
                _await_becoming(pid)
    except OSError:
        return None
    return Process(pid, tuple(words.split(b"\0")), frozenset(variables.split(b"\0")))


def _await_becoming(pid: int) -> None:
    """Give a moment to one that may be about to begin another program: in the midst of execve(2)
    the kernel shows neither arguments nor an environment. OSError: the kernel's own, or it has
    ended.
    """
    Path(f"/proc/{pid}/exe").readlink()
    time.sleep(_BECOMING_S)
