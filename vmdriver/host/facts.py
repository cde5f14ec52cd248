"""What this host is. Read from /proc and friends; nothing is changed here."""

from __future__ import annotations

import contextlib
import functools
import grp
import hashlib
import os
import platform
import pwd
import stat
import time
from pathlib import Path

_PROCESSOR = {
    *(
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "microcode",
        "flags",
    ),
    *("CPU implementer", "CPU variant", "CPU part", "CPU revision", "Features"),
}
"""What of /proc/cpuinfo does not change from moment to moment; on x86, and on ARM."""


@functools.cache
def boot_id() -> str:
    """Identity of the host's current boot (proc(5), /proc/sys/kernel/random/boot_id). Read once: it
    outlives every process.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def uptime_s() -> float:
    """Seconds since the host's current boot, sleep included. Nobody can set this clock
    (clock_gettime(2), CLOCK_BOOTTIME).
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


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


def kernel_build() -> str:
    """Release and build of the host's kernel, as `uname -rv` prints them."""
    return f"{platform.release()} {platform.version()}"


def device_identity(path: str) -> str:
    """Number, mode and owner of a device file, to see whether it is still the same; "" where
    there is none.
    """
    try:
        info = Path(path).stat()
    except OSError:
        return ""
    number = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    return f"{number} {stat.S_IMODE(info.st_mode):04o} {info.st_uid}:{info.st_gid}"


def file_identity(path: str) -> str:
    """Size and time of a program, to see whether it is still the same; "" where there is none."""
    try:
        info = Path(path).stat()
    except OSError:
        return ""
    return f"{info.st_size} {info.st_mtime_ns}"


def processor() -> str:
    """Digest of what this processor can do, and of whether the kernel's KVM nests."""
    words = [*processor_entry().values(), *kvm_nests().values()]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def processor_entry(source: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What of the first processor does not change from moment to moment (proc(5), /proc/cpuinfo),
    as it stands there.
    """
    text = ""
    with contextlib.suppress(OSError), source.open() as file:
        # Each further processor would cost the kernel a question to it.
        for line in file:
            if not line.strip():
                break
            text += line
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value for key, _, value in pairs if key.strip() in _PROCESSOR}


def kvm_nests() -> dict[str, str]:
    """Whether guests get virtualisation of their own, by the kernel's module."""
    found = {}
    for module in ("kvm_intel", "kvm_amd"):
        with contextlib.suppress(OSError):
            path = Path(f"/sys/module/{module}/parameters/nested")
            found[module] = path.read_text()
    return found
