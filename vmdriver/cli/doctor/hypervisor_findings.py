"""What `vmdriver doctor` says of libvirt and QEMU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from vmdriver.app import Driver
from vmdriver.cli.doctor.finding import Finding
from vmdriver.config import Config
from vmdriver.config.views import machine_uids
from vmdriver.errors import DriverError, TimedOut
from vmdriver.host import facts
from vmdriver.hypervisor.memory.confined_reader import trial
from vmdriver.hypervisor.questions import verdict as verdicts
from vmdriver.lifecycle.ports.host import Ownership

_GROUP = "libvirt-qemu"
_USERFAULTFD = Path("/proc/sys/vm/unprivileged_userfaultfd")


async def libvirt_findings(driver: Driver, *, alone: bool) -> AsyncIterator[Finding]:
    """What it and QEMU are, and what is known of how they behave here."""
    check = "libvirt"
    if driver.embedded and not alone:
        yield Finding(check, "ok", "a driver is running on this state directory")
        yield _questions(driver)
        return
    await driver.prepare_connection()
    try:
        versions = await driver.machines.releases()
    except DriverError as error:
        yield Finding(
            check,
            "fail",
            error.text(),
            way_to_libvirt(driver.config.driver.connection, error),
        )
        return
    text = f"libvirt {versions['libvirt']}, QEMU {versions['hypervisor']}"
    yield Finding(check, "ok", text)
    yield _questions(driver)
    yield _streams(driver.config)
    if driver.config.memory.live_snapshots:
        yield live_snapshots()
    if driver.embedded:
        yield _monitors(driver.monitor_filter.problem)


def libvirts_group(etc: Path = Path("/etc")) -> Iterator[Finding]:
    """Debian's libvirt looks for a group when it begins, whatever its settings say, and without it
    its driver of QEMU is not active. Debian 12 makes it with a package that we do not need.
    """
    if (etc / "debian_version").exists() and facts.group_id(_GROUP) is None:
        text = f"this host has no group {_GROUP}, without which Debian's begins no QEMU"
        yield Finding("libvirt", "fail", text, f"groupadd --system {_GROUP}")


def way_to_libvirt(uri: str, error: DriverError) -> str:
    """What to do where nothing can be asked of it. `uri`: of its daemon, "embed" for our own."""
    if uri != "embed":
        return f"have libvirt's daemon answer on {uri} (systemctl restart libvirtd)"
    if isinstance(error, TimedOut):
        return "look at the kernel's log: what libvirt waits for does not answer"
    return "apt-get install libvirt-daemon-driver-qemu"


def _questions(driver: Driver) -> Finding:
    """What the last driver has found out."""
    check, results = "machine starts", driver.layout.questions
    found = verdicts.load(results)
    if not found:
        text = "whether libvirt need not ask for each feature of a CPU is tried by the driver"
        return Finding(check, "ok", text)
    for kind, verdict in sorted(found.items()):
        if not verdict.spared:
            text = f"libvirt asks QEMU for each feature of a CPU ({kind}): {verdict.reason}"
            advice = f"once mended: remove {results} and restart the driver"
            return Finding(check, "warn", text, advice)
    text = "libvirt does not ask QEMU for each feature of a CPU"
    return Finding(check, "ok", f"{text} ({', '.join(sorted(found))})")


def _streams(config: Config) -> Finding:
    check, user = "memory streams", machine_uids(config).probe
    if problem := trial(Ownership(user.uid, user.gid)):
        text = f"cannot be read, so that no memory is kept: {problem}"
        advice = "a kernel with seccomp, on x86_64 or aarch64"
        return Finding(check, "fail", text, advice, machines_start=True)
    return Finding(check, "ok", "a process without rights reads them")


def _monitors(problem: str) -> Finding:
    check = "monitors"
    if problem:
        text = f"a QEMU that was taken over can end the driver: {problem}"
        return Finding(check, "warn", text, "apt-get install gcc libc6-dev")
    return Finding(check, "ok", "what QEMUs say is filtered before libvirt reads it")


def live_snapshots(switch: Path = _USERFAULTFD) -> Finding:
    """Whether a QEMU without rights may write memory while its machine goes on."""
    check, still = (
        "live snapshots",
        "machines stand still while their memory is written",
    )
    leave_it = "set live_snapshots = false"
    try:
        allowed = switch.read_text().strip() == "1"
    except OSError:
        text = f"{still}: this kernel has no userfaultfd"
        return Finding(check, "warn", text, leave_it)
    if not allowed:
        text = f"{still}: QEMU's users may not use userfaultfd"
        allow = f"sysctl -w vm.{switch.name}=1 (docs/security.md says what that opens)"
        return Finding(check, "warn", text, f"{allow}, or {leave_it}")
    return Finding(check, "ok", "QEMU's users may use userfaultfd")
