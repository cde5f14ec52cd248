"""usage: enter.py PID PROGRAM [ARGUMENT...]

Becomes what code in the process PID could be, and executes PROGRAM: its namespaces, root directory, user, groups, limits
and oom_score_adj; no capabilities, no new privileges. Its seccomp filter alone is not taken over, so that whatever is
refused is refused by something else.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

KINDS = {
    "user": 0x10000000,
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "mnt": 0x00020000,
}
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, LAST_CAPABILITY = 24, 38, 63
libc = ctypes.CDLL(None, use_errno=True)


def done(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (x.partition(":") for x in lines)}


def differing(pid: int) -> int:
    """The namespaces that are not this process's."""

    def of(process: str, kind: str) -> str:
        return str(Path(f"/proc/{process}/ns/{kind}").readlink())

    return sum(flag for k, flag in KINDS.items() if of(str(pid), k) != of("self", k))


LIMITS = {
    "Max cpu time": resource.RLIMIT_CPU,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max core file size": resource.RLIMIT_CORE,
    "Max processes": resource.RLIMIT_NPROC,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max address space": resource.RLIMIT_AS,
}


def limits_of(pid: int) -> dict[int, tuple[int, int]]:
    """Read, as prlimit(2) needs a capability for it that root in a container may lack."""

    def number(word: str) -> int:
        return resource.RLIM_INFINITY if word == "unlimited" else int(word)

    found = {}
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if (which := LIMITS.get(line[:25].strip())) is not None:
            soft, hard = line[25:].split()[:2]
            found[which] = (number(soft), number(hard))
    return found


def enter(pid: int) -> None:
    """All that is asked for there is fetched first: behind the door it is out of sight."""
    found = status(pid)
    uid, gid = int(found["Uid"][0]), int(found["Gid"][0])
    groups = [int(group) for group in found["Groups"]]
    limits = limits_of(pid)
    score = Path(f"/proc/{pid}/oom_score_adj").read_text()
    namespaces = differing(pid)
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    Path("/proc/self/oom_score_adj").write_text(score)
    handle = os.pidfd_open(pid)
    os.setgroups(groups)
    if namespaces:
        done(libc.setns(handle, namespaces))
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    os.close(handle)
    for which, values in limits.items():
        resource.setrlimit(which, values)
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    done(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


if __name__ == "__main__":
    enter(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
