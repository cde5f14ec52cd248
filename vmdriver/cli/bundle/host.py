"""What is packed of the host: versions, figures, the effective configuration."""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vmdriver import __version__
from vmdriver.cli.bundle.disclosure import disclosed_setting, withheld
from vmdriver.config import Config, Loaded
from vmdriver.errors import CommandError, DriverError
from vmdriver.host import facts, process
from vmdriver.host.packages import PACKAGES

_FIGURES = ("meminfo", "loadavg", "version")
"""Of /proc."""
_ARGUMENTS = re.compile(
    r"[a-z_.]*(?:iommu|vfio|kvm|cgroup|mitigations|nested|lsm|security|apparmor|selinux|huge|"
    r"swap|isolcpus|nosmt|maxcpus|mem|userns|user_namespaces)[a-z_.]*"
)
"""The kernel's of which the value is told: others may hold somebody's credentials."""
_MOST = 2**16
_DEADLINE_S = 20.0
_MORE_PACKAGES = (
    *("libvirt-daemon-driver-qemu", "libvirt0", "qemu-system-common", "passt"),
    *("systemd", "linux-image-amd64", "linux-image-arm64"),
)


def versions() -> dict[str, Any]:
    """Of everything that a driver stands on."""
    wanted = sorted({p for text in PACKAGES.values() for p in text.split()})
    return {
        "vmdriver": __version__,
        "python": sys.version,
        "libraries": _libraries(),
        "kernel": platform.release(),
        "architecture": facts.machine_architecture(),
        "system": _text(Path("/etc/os-release")).splitlines(),
        "packages": _packages([*wanted, *_MORE_PACKAGES]),
    }


def figures(config: Config) -> dict[str, Any]:
    """What the host has, and how much of it is used."""
    found: dict[str, Any] = {
        name: _text(Path("/proc") / name).splitlines() for name in _FIGURES
    }
    words = _text(Path("/proc/cmdline")).split()
    found["cmdline"] = [argument(word) for word in words]
    place = config.driver.state_dir
    space = next(p for p in (place, *place.parents) if p.exists())
    found["space"] = dict(shutil.disk_usage(space)._asdict())
    found["uptime_s"] = facts.uptime_s()
    return found


def argument(word: str) -> str:
    """One of the kernel's, as it is told.

    >>> argument("intel_iommu=on"), argument("systemd.set_credential=a:b"), argument("quiet")
    ('intel_iommu=on', 'systemd.set_credential=[withheld]', 'quiet')
    """
    name, is_given, value = word.partition("=")
    if not is_given or _ARGUMENTS.fullmatch(name):
        return word
    return f"{name}={withheld(value)}"


def configuration(loaded: Loaded) -> dict[str, Any]:
    """Every setting as it is in force, and where its value is from."""
    return {
        key: {"value": disclosed_setting(key, value), "source": source}
        for key, value, source in loaded.table()
    }


def listed(config: Config) -> Any:
    """What the driver tells its gateway now."""
    from vmdriver.service.client import list_sandboxes

    try:
        return list_sandboxes(config.gateway.bind_socket)
    except DriverError as error:
        return {"no driver": error.message}


def _libraries() -> dict[str, str]:
    names = sorted(
        {
            requirement.partition(">")[0].partition("=")[0].partition(";")[0].strip()
            for requirement in metadata.requires("vmdriver") or ()
            if "extra ==" not in requirement
        }
    )
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is missing"


def _packages(names: list[str]) -> list[str]:
    command = ["dpkg-query", "--show", "--showformat=${Package} ${Version}\n", *names]
    try:
        # It ends with 1 where it knows one of them not, and shows the others.
        shown = ["sh", "-c", '"$@" 2>/dev/null || true', "sh", *command]
        done = asyncio.run(process.run(shown, deadline_s=_DEADLINE_S))
    except CommandError as error:
        return [error.message]
    return done.stdout.decode(errors="replace").splitlines()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST).decode(errors="replace")
    except OSError as error:
        return f"not read: {error.strerror}"
