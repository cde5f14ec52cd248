"""vmdriver doctor: is this host fit, and if not, what is to be done."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from vmdriver.app import Driver, open_driver
from vmdriver.cli.doctor.answering import silent_findings
from vmdriver.cli.doctor.device_findings import device_findings
from vmdriver.cli.doctor.finding import Finding, failed
from vmdriver.cli.doctor.folder_findings import folder_findings
from vmdriver.cli.doctor.guest_findings import guest_findings
from vmdriver.cli.doctor.hypervisor_findings import (
    libvirt_findings,
    libvirts_group,
)
from vmdriver.cli.doctor.network_findings import network_findings
from vmdriver.cli.doctor.remote_findings import remote_findings
from vmdriver.cli.doctor.showing import shown
from vmdriver.cli.unread import unread
from vmdriver.config import Config, Loaded
from vmdriver.config.views import image_policy, machine_uids, qemu_owner
from vmdriver.errors import CommandError, ConfigError, DriverError
from vmdriver.host import facts, process
from vmdriver.host.confined.user_namespace import FIRST, UserNamespace
from vmdriver.host.lock import StateLock
from vmdriver.host.packages import way_to
from vmdriver.host.users import access
from vmdriver.host.users import ids as users
from vmdriver.hypervisor.kvm import outcome as kvm_outcome
from vmdriver.hypervisor.kvm.access import KVM_DEVICE
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.set_aside import WAY_OUT
from vmdriver.model.wall import MEANING, Offer, joined
from vmdriver.oci.trust import policy_in_force
from vmdriver.service.server import check_path
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes import wall_found
from vmdriver.storage.way_in import closed_folder

_TOOLS = (
    "bwrap",
    "qemu-img",
    "mke2fs",
    "nft",
    "skopeo",
    "umoci",
    "readelf",
    "patchelf",
)


_WITHOUT = {
    "zstd": "images with layers of zstd cannot be used",
    "ss": "connections of a machine that has ended stay open for a while",
}
"""Programs that no start needs, and what is missing without them."""
_TRUST = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),
)


def _tools() -> Iterator[Finding]:
    # First QEMU: without it libvirt fails in words that tell nothing of it.
    emulator = f"qemu-system-{facts.machine_architecture()}"
    for tool in (emulator, *_TOOLS, *_WITHOUT):
        path = shutil.which(tool, path=process.ENVIRONMENT["PATH"])
        if path:
            yield Finding(f"tool {tool}", "ok", path)
        elif lack := _WITHOUT.get(tool):
            text = f"is missing: {lack}"
            yield Finding(f"tool {tool}", "warn", text, way_to(tool))
        else:
            yield Finding(f"tool {tool}", "fail", "is missing", way_to(tool))
    if not any(path.is_file() for path in _TRUST):
        text = "this host trusts no authority: registries are not reached by TLS"
        way_out = "apt-get install ca-certificates"
        yield Finding("certificates", "warn", text, way_out)


def _permissions(config: Config) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("root", "ok", "runs as root")
    else:
        text = "does not run as root, as taps and firewalls need: the rest is not looked at"
        advice = "run it as root, and the driver too: sudo vmdriver doctor"
        yield Finding("root", "fail", text, advice)
    if config.driver.connection == "embed":
        yield from libvirts_group()
    try:
        owner = qemu_owner(config)
    except ConfigError as error:
        yield failed("QEMU user", error)
        return
    text = f"{config.driver.qemu_user} ({owner.uid}:{owner.gid})"
    yield Finding("QEMU user", "ok", text)
    uids = machine_uids(config)
    if taken := users.others_between(uids.first, uids.last):
        advice = users.way_out(uids.last - uids.first + 1)
        yield Finding("machine users", "fail", f"{uids}: {taken}", advice)
    else:
        yield Finding("machine users", "ok", f"{uids}, one for each machine")
    if not Path("/dev/net/tun").exists():
        yield Finding("tun device", "fail", "/dev/net/tun is missing", "modprobe tun")


def unreadable(layout: Layout) -> list[Finding]:
    """Each sandbox whose files cannot be read."""
    return [
        Finding(
            f"sandbox {state.id}",
            "fail",
            "; ".join(state.problems),
            WAY_OUT,
            machines_start=True,
        )
        for state in unread(layout)
    ]


def in_the_way(layout: Layout) -> list[Finding]:
    """What was moved aside, while it is still there."""
    return [
        Finding(
            "state directory",
            "warn",
            f"{note.path} was in the way: {note.why}"
            + (f"; it is {note.place} now" if note.place != note.path else ""),
            "look what it is; put it where it belongs, or remove it",
        )
        for note in layout.clearing.notes()
    ]


def _files(config: Config) -> Iterator[Finding]:
    state_dir, socket = config.driver.state_dir, config.gateway.bind_socket
    yield from guest_findings(config)
    try:
        check_path(socket)
        yield Finding("socket path", "ok", str(socket))
    except ConfigError as error:
        yield failed("socket path", error)
    try:
        text = policy_in_force(image_policy(config))
        yield Finding("image signatures", "ok", text)
    except ConfigError as error:
        yield failed("image signatures", error)
    yield from unreadable(Layout(state_dir))
    yield from in_the_way(Layout(state_dir))
    yield from device_findings(config)
    space = next(p for p in (state_dir, *state_dir.parents) if p.exists())
    free = shutil.disk_usage(space).free // 2**20
    enough = free > config.images.overlay_disk_mib
    advice = "" if enough else "less than one sandbox's disk: free some space"
    level = "ok" if enough else "warn"
    yield Finding("disk space", level, f"{free} MiB are free", advice)


async def _accelerator(config: Config) -> Finding:
    check = "accelerator"
    if config.driver.accelerator == "tcg":
        text = "tcg is configured: machines are slow"
        return Finding(check, "warn", text, "use auto")
    if not Path(KVM_DEVICE).exists():
        text = f"{KVM_DEVICE} is missing: machines run on TCG"
        advice = "enable (nested) virtualisation, and load kvm_intel or kvm_amd"
        return Finding(check, "warn", text, advice)
    owner = qemu_owner(config)
    if await access.denied([KVM_DEVICE], "use", owner.uid, owner.gid):
        text = (
            f"{config.driver.qemu_user} may not use {KVM_DEVICE}; libvirt then probes QEMU "
            "anew at every step"
        )
        advice = f"chgrp kvm {KVM_DEVICE}; chmod 0660 {KVM_DEVICE}"
        return Finding(check, "fail", text, advice, machines_start=True)
    return _probed(Layout(config.driver.state_dir).accelerator)


def _probed(results: Path) -> Finding:
    """What the last driver has found out."""
    last = kvm_outcome.load(results)
    if last is None:
        message = f"{KVM_DEVICE} is there; a probe guest decides at the first start"
        return Finding("accelerator", "ok", message)
    if last.works:
        return Finding("accelerator", "ok", "a probe guest has booted on KVM")
    message = f"machines run without hardware acceleration (TCG): {last.reason}"
    if not last.decided:
        advice = "that is no verdict on KVM: the driver goes on asking"
        return Finding("accelerator", "warn", message, advice)
    advice = (
        f"KVM is asked again when the host has restarted, or {KVM_DEVICE}, kernel, processor or "
        f"QEMU have changed; at once: remove {results} and restart the driver"
    )
    return Finding("accelerator", "warn", message, advice)


def _done_without(found: Offer, unsealed: str, unlimited: str) -> Iterator[Finding]:
    """Parts that nothing is refused for, where they are not there, for these reasons."""
    if "sealed-memory" not in found.parts:
        text = f"with QEMU before 8.2 every machine boots: {unsealed}"
        yield Finding("wall: sealed-memory", "warn", text, way_to("gcc"))
    if "cgroup" not in found.parts:
        text = f"the kernel does not limit machines: {unlimited}"
        advice = "docs/security.md says what it takes"
        yield Finding("wall: cgroup", "warn", text, advice)


async def examine(loaded: Loaded) -> list[Finding]:
    """Everything that is asked of this host, in the order in which one thing needs another."""
    config = loaded.config
    findings = [*_tools(), *_permissions(config)]
    if os.geteuid() != 0:
        return findings  # our files are closed to others
    if hanging := await silent_findings(config):
        return [*findings, *hanging]  # we would wait for them
    try:
        findings += [*_files(config)]
        if any(f.check == "QEMU user" and f.level == "fail" for f in findings):
            return findings  # the rest cannot be asked
        findings.append(await _accelerator(config))
        layout = Layout(config.driver.state_dir)
        layout.make()
    except (ConfigError, OSError) as error:
        return [*findings, failed("state directory", error)]
    lock = StateLock(layout.lock)
    alone = lock.try_open()
    try:
        way, driver = await _way_in(config, alone=alone)
        findings.append(way)
        if driver is not None:
            findings += await _asked(driver, alone=alone)
    finally:
        lock.release()  # a driver that is to start waits some seconds for it
    return [*findings, *[finding async for finding in remote_findings(config)]]


async def _way_in(config: Config, *, alone: bool) -> tuple[Finding, Driver | None]:
    """Whether QEMU gets to its files; where it does, a driver that may use libvirt if `alone`."""
    check, probe = "state directory", machine_uids(config).probe
    stranger = Ownership(probe.uid, probe.gid)
    closed = await closed_folder(Layout(config.driver.state_dir), stranger)
    text = "QEMU reaches it"
    if closed:
        text = f"{closed} is closed to QEMU, which comes in through a mount of its own"
    if not alone:
        return Finding(check, "ok", text), Driver(config)
    try:
        return Finding(check, "ok", text), await open_driver(config)
    except ConfigError as error:
        return failed(check, error), None


async def _wall(driver: Driver, *, alone: bool) -> AsyncIterator[Finding]:
    """A line for each part: what starts without it is the operator's word. Beside a running driver
    nothing is tried, since its files would be written.
    """
    strict = driver.config.isolation.isolation == "strict"
    if alone:
        await driver.sealing.prepare()
        found = joined([await source.offer(None) for source in driver.wall_sources])
    else:
        found = wall_found.load(driver.layout.wall) or Offer()
    for part in found.parts:
        yield Finding(f"wall: {part}", "ok", MEANING[part])
    for lack in found.lacks:
        text = "no machine starts" if strict else "machines start without it"
        level, way_out = "fail" if strict else "warn", lack.resolution
        yield Finding(f"wall: {lack.part}", level, f"{text}: {lack.why}", way_out)
    why = "the driver's log says why"
    reasons = (
        (driver.sealing.problem, driver.cgroups.place.why) if alone else (why, why)
    )
    for finding in _done_without(found, *reasons):
        yield finding


async def _asked(driver: Driver, *, alone: bool) -> list[Finding]:
    """What the outside worlds say themselves."""
    findings = []
    checks = (
        ("network", network_findings(driver)),
        ("libvirt", libvirt_findings(driver, alone=alone)),
        ("wall", _wall(driver, alone=alone)),
        ("host folders", folder_findings(driver.folders, driver.core.host_mounts)),
    )
    try:
        for name, check in checks:
            try:
                findings += [finding async for finding in check]
            except (DriverError, OSError) as error:
                findings.append(failed(name, error))
        findings += [await _qemu_version(), await _image_users()]
    finally:
        driver.release_threads()
    return findings


async def _image_users() -> Finding:
    """Who the programs are that unpack images."""
    check, numbers = "image users", UserNamespace()
    try:
        await numbers.root()
    except DriverError as error:
        return failed(check, error)
    finally:
        numbers.close()
    text = f"images are unpacked as users {FIRST} and above, which nobody else is"
    return Finding(check, "ok", text)


async def _qemu_version() -> Finding:
    program = f"qemu-system-{facts.machine_architecture()}"
    try:
        done = await process.run([program, "--version"], deadline_s=10)
    except CommandError as error:
        return Finding("QEMU", "fail", error.message, way_to(program))
    return Finding("QEMU", "ok", done.stdout.decode().splitlines()[0])


def doctor(loaded: Loaded, *, as_json: bool) -> int:
    """0: nothing is to be done. 1: machines cannot be started. 3: they can; something is to be
    looked at.
    """
    return shown(asyncio.run(examine(loaded)), as_json=as_json)
