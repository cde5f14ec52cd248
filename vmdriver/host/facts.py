"""What this host is. Read from /proc and friends; nothing is changed here."""

from __future__ import annotations

import grp
import os
import platform
import pwd
from pathlib import Path


def boot_id() -> str:
    """Identity of the host's current boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kernel_release() -> str:
    """As `uname -r` prints it."""
    return platform.release()


def machine_architecture() -> str:
    """As `uname -m` prints it: x86_64, aarch64, ..."""
    return platform.machine()


def oci_architecture() -> str:
    """The same in the words of the OCI image specification (GOARCH)."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(
        platform.machine(), platform.machine()
    )


def available_memory_bytes() -> int:
    """MemAvailable of /proc/meminfo: what can be used without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def memory_mib() -> int:
    """Physical memory of the host in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def user_ids(name: str) -> tuple[int, int] | None:
    """User and group id of a user of this host, or None."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def group_id(name: str) -> int | None:
    """Id of a group of this host, or None."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def may_use(path: str, uid: int, gid: int) -> bool:
    """Whether that user, with that group, may read and write the file, by its mode
    bits.
    """
    try:
        info = Path(path).stat()
    except OSError:
        return False
    if info.st_uid == uid:
        return info.st_mode & 0o600 == 0o600
    if info.st_gid == gid:
        return info.st_mode & 0o060 == 0o060
    return info.st_mode & 0o006 == 0o006


def name_servers() -> tuple[str, ...]:
    """IPv4 name servers of this host that a guest could reach: not those on the
    loopback.
    """
    for path in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        words = [line.split() for line in lines]
        found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]
        usable = tuple(a for a in found if ":" not in a and not a.startswith("127."))
        if usable:
            return usable[:1]
    return ()
