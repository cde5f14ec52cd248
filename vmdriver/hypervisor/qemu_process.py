"""QEMU as a process of this host, for when it does not do what libvirt asks of it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from pathlib import Path
from xml.etree import ElementTree as Xml

from vmdriver.host.users import ids as users

_log = logging.getLogger(__name__)
_SYSTEM_RUN = Path("/run/libvirt/qemu")
_PSS = re.compile(r"^Pss:\s+([0-9]+) kB$", re.MULTILINE)
_LABEL = re.compile(r"\+([0-9]+):\+[0-9]+")


def run_directory(uri: str) -> Path:
    """Where libvirt keeps the process ids of a connection's machines (libvirt 9.0:
    virPidFileBuildPath in its run directory).
    """
    _, found, root = uri.partition("root=")
    return Path(root) / "run" / "qemu" if found else _SYSTEM_RUN


def kill(directory: Path, domain: str) -> bool:
    """End a domain's QEMU with SIGKILL, which also ends what is stopped. False: there is none.

    libvirt's note of the process id may be outdated and the id somebody else's: a descriptor
    pins the process, then its user or its command line says whose it is.
    """
    try:
        pid = int((directory / f"{domain}.pid").read_text())
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return False
    try:
        if pid_of(directory, domain) != pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _log.warning("QEMU of %s (process %d) had to be killed", domain, pid)
    finally:
        os.close(descriptor)
    return True


def pid_of(directory: Path, domain: str) -> int | None:
    """The id of a domain's QEMU. None: there is none that runs."""
    try:
        pid = int((directory / f"{domain}.pid").read_text())
    except (OSError, ValueError):
        return None
    user = own_user(read_status(directory / f"{domain}.xml"))
    return pid if is_machine(pid, domain, user) else None


def held_mib(directory: Path, domain: str) -> int | None:
    """MiB that a domain's QEMU has, and its share of what several processes have (the kernel's
    "PSS"), rounded up. None: there is none that runs, or the kernel does not say.
    """
    pid = pid_of(directory, domain)
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = _PSS.search(text)
    return -(-int(found[1]) // 1024) if found else None


def read_status(path: Path) -> Xml.Element | None:
    """What libvirt has noted of a run. None: torn, or no machine's."""
    try:
        status = Xml.parse(path).getroot()  # noqa: S314 - written by libvirt for root alone
    except (Xml.ParseError, OSError):
        return None
    return status if status.tag == "domstatus" else None


def own_user(status: Xml.Element | None) -> int | None:
    """The user that this machine has and nothing else on this host. None: it is an account of the
    host's, as which all machines of earlier drivers ran.
    """
    if status is None:
        return None
    label = status.findtext("domain/seclabel[@model='dac']/label", "")
    found = _LABEL.fullmatch(label)
    uid = int(found[1]) if found else 0
    return uid if uid and not users.is_named(uid) else None


def is_machine(
    pid: int, domain: str, user: int | None, *, in_doubt: bool = False
) -> bool:
    """Whether that process is the QEMU of that domain, which alone runs as `user`. Its command line
    is in its own memory: what has taken it over writes there what it likes, or ends the first
    thread, and there is none. So it counts only where there is no such user.
    """
    if user is not None:
        return users.runs_as(pid, user)
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return in_doubt
    # "-name guest=NAME,debug-threads=on": as libvirt writes it.
    guest = b"guest=" + os.fsencode(domain)
    return any(a == guest or a.startswith(guest + b",") for a in arguments)
