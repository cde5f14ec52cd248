"""QEMU as a process of this host, for when it does not do what libvirt asks of it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path

_log = logging.getLogger(__name__)
_SYSTEM_RUN = Path("/run/libvirt/qemu")


def run_directory(uri: str) -> Path:
    """Where libvirt keeps the process ids of a connection's machines (libvirt 9.0:
    virPidFileBuildPath in its run directory).
    """
    _, found, root = uri.partition("root=")
    return Path(root) / "run" / "qemu" if found else _SYSTEM_RUN


def kill(directory: Path, domain: str) -> bool:
    """End a domain's QEMU with SIGKILL, which also ends what is stopped. False: there is none.

    libvirt's note of the process id may be outdated and the id somebody else's: a descriptor
    pins the process, then its command line says whose it is.
    """
    try:
        pid = int((directory / f"{domain}.pid").read_text())
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return False
    try:
        if not _is_of(pid, domain):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _log.warning("QEMU of %s (process %d) had to be killed", domain, pid)
    finally:
        os.close(descriptor)
    return True


def _is_of(pid: int, domain: str) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # "-name guest=NAME,debug-threads=on": as libvirt writes it.
    return any(a.startswith(f"guest={domain},".encode()) for a in arguments)
