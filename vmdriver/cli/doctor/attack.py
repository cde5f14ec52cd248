"""vmdriver doctor --attack: does what an escaped QEMU would do, and says where it got too far.
Nothing is written, sent or ended; rules of the firewall are flushed, which the running driver has
to notice.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver.cli.doctor.attack_evidence import Evidence, Golden, evidence
from vmdriver.cli.terminal import leveled, print_json, say
from vmdriver.config import Config, Loaded
from vmdriver.errors import DriverError, NotFound, Refused
from vmdriver.host import intruder, process
from vmdriver.host.confined.box import interpreter
from vmdriver.host.lock import StateLock
from vmdriver.host.target import Facts, Identity, facts, identity, surroundings
from vmdriver.hypervisor.qemu_process import pid_of, run_directory
from vmdriver.model.plan import LaunchPlan
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.records import is_sandbox, read_record

_OUT_OF_MEMORY = 500
_DEADLINE_S = 60.0
_RESTORED_S, _LOOK_S = 1.0, 0.02
_MOST_PATHS = 20_000
_OTHERS = ("/etc/shadow", "/root", "/run/docker.sock", "/dev/mem")
_TOLD = ("boot-id", "etc/qemu.conf", "run/qemu/*.pid", "boxed-qemu", "boxes/*")
_COUNTED = re.compile(r"packets \d+ bytes \d+")


@dataclass(frozen=True)
class Machine:
    """One that runs."""

    sandbox_id: str
    plan: LaunchPlan
    pid: int


def machines(config: Config, wanted: str) -> list[Machine]:
    """Those of running sandboxes; of one, if it is named. NotFound."""
    layout = Layout(config.driver.state_dir)
    connection = config.driver.connection
    places = layout.libvirt / "run" / "qemu"
    if connection != "embed":
        places = run_directory(connection)
    found = []
    for folder in sorted(layout.sandboxes.glob(wanted or "*")):
        if not is_sandbox(folder):
            continue
        try:
            plan = read_record(folder).plan
        except (DriverError, OSError):
            continue
        pid = pid_of(places, plan.domain) if plan is not None else None
        if plan is not None and pid is not None:
            found.append(Machine(folder.name, plan, pid))
    if not found:
        name = f"sandbox {wanted}" if wanted else "any sandbox"
        raise NotFound(f"no machine of {name} runs in {config.driver.state_dir}")
    return found


def golden(plan: LaunchPlan, own_folder: Path) -> tuple[Golden, list[Path]]:
    """What the process is meant to be; and the files that it shares with others."""
    own, shared = [Path(plan.console)], [Path(plan.kernel), Path(plan.initramfs)]
    for disk in plan.disks:
        mine = not disk.read_only or Path(disk.path).is_relative_to(own_folder)
        (own if mine else shared).append(Path(disk.path))
        shared += [Path(path) for path in disk.backing]
    meant = Golden(
        uid=plan.user.uid if plan.user else None,
        gid=plan.user.gid if plan.user else None,
        own=_identities(own),
        shared=_identities(shared),
        own_name=plan.domain,
        parts=frozenset(plan.wall),
        oom_score_adj=_OUT_OF_MEMORY,
    )
    return meant, shared


def _identities(paths: list[Path]) -> frozenset[Identity]:
    return frozenset(found for path in paths if (found := identity(path)))


def told(layout: Layout) -> list[Path]:
    """Files that every machine may read, and none write: libvirt's notes, and what a machine's user
    makes its box of (names are in them, and nothing else); templates' layers, on which any may
    come to stand.
    """
    found = [layout.libvirt.glob(pattern) for pattern in _TOLD]
    found.append(layout.layers.glob("template-*"))
    return [path for paths in found for path in paths]


def private(layout: Layout, known: frozenset[Identity]) -> Iterator[str]:
    """Paths that are nothing to this machine: of the driver, of other machines, of the host."""
    yield from _OTHERS
    common = (layout.images, layout.supervisors, layout.boot, layout.templates)
    pending, count = [layout.root], 0
    while pending and count < _MOST_PATHS:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink() or path in common:
                    continue
                if entry.is_dir():
                    pending.append(path)
                elif identity(path) not in known:
                    count += 1
                    yield entry.path


async def attacked(config: Config, machine: Machine) -> list[Evidence]:
    """All the evidence of one machine. DriverError when it ends meanwhile."""
    layout = Layout(config.driver.state_dir)
    meant, shared = golden(machine.plan, layout.sandbox(machine.sandbox_id).root)
    try:
        known = facts(machine.pid)
    except (OSError, KeyError) as error:
        raise Refused(f"the machine of {machine.sandbox_id} has ended") from error
    shared += told(layout)
    others = private(layout, meant.own | _identities(shared))
    found = await attempts(known, meant, shared, list(others))
    return [*found, *await _network(layout, machine.plan)]


async def attempts(
    known: Facts, meant: Golden, shared: list[Path], others: list[str]
) -> list[Evidence]:
    """What came of everything that its process could do. Its mapped memory is shared, too."""
    around = surroundings()
    mapped = {
        held.identity: held.path
        for held in known.held
        if held.identity not in meant.own
        and not held.path.startswith(("/usr/", "/memfd:"))
        and meant.own_name not in held.path  # libvirt's log of it
    }
    meant = Golden(**{**vars(meant), "shared": meant.shared | set(mapped)})
    others = [path for path in others if identity(Path(path)) not in mapped]
    paths = [*others, *mapped.values(), *(str(path) for path in shared)]
    inside = await _intrude(
        known.pid,
        inside=True,
        tcp=around.tcp,
        unix=around.unix,
        walk=True,
        exhaust=True,
    )
    outside = await _intrude(
        known.pid,
        inside=False,
        open=paths,
        signal=around.processes,
        unix=[path for path in others if Path(path).is_socket()],
    )
    return evidence(meant, known, inside, outside, others)


async def _intrude(pid: int, **asked: Any) -> dict[str, Any]:
    words, _ = interpreter(Path(intruder.__file__))
    asked = {"pid": pid, **asked}
    done = await process.run(
        words, deadline_s=_DEADLINE_S, stdin=json.dumps(asked).encode()
    )
    return dict(json.loads(done.stdout))


# --- its firewall


async def _network(layout: Layout, plan: LaunchPlan) -> list[Evidence]:
    network, control = plan.network, "firewall"
    places: list[tuple[str, list[str], list[str]]] = []
    if network.namespace is not None:
        enter = ["nsenter", f"--net=/run/netns/{network.namespace}"]
        flush = [*enter, "nft", "flush", "ruleset"]
        places.append(("its namespace", [*enter, "nft", "list", "ruleset"], flush))
    done = await process.run(["nft", "list", "tables"], deadline_s=_DEADLINE_S)
    for line in done.stdout.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) == 3 and words[2].endswith(f"_{network.lease.tap}"):
            show = ["nft", "list", *words]
            places.append((f"the host's {words[2]}", show, ["nft", "delete", *words]))
    if not places:
        text = f"there are no rules for {network.lease.tap}"
        return [Evidence(control, "fail", text)]
    found = [await _counted(plan, places[0][1])]
    if not _driver_runs(layout):
        text = "no driver runs that would restore rules: none were flushed"
        return [*found, Evidence(control, "warn", text)]
    return [*found, *[await flushed(*place) for place in places]]


async def _counted(plan: LaunchPlan, show: list[str]) -> Evidence:
    most, rules = plan.network.max_connections, await _rules(show)
    if most is None or f"ct count over {most}" not in rules:
        return Evidence("firewall", "fail", "its connections are not counted")
    return Evidence("firewall", "ok", f"at most {most} connections at a time")


async def flushed(where: str, show: list[str], flush: list[str]) -> Evidence:
    """Whether what `show` prints is the same again soon after `flush`."""
    before, begun = await _rules(show), time.monotonic()
    await process.run(flush, deadline_s=_DEADLINE_S)
    while (now := await _rules(show)) != before:
        if time.monotonic() - begun > _RESTORED_S:
            what = "changed" if now else "gone"
            text = f"rules of {where} were still {what} {_RESTORED_S:g} s after a flush"
            return Evidence("firewall", "fail", text)
        await asyncio.sleep(_LOOK_S)
    took = time.monotonic() - begun
    text = f"rules of {where} were flushed, and there again within {took:.2f} s"
    return Evidence("firewall", "ok", text)


async def _rules(show: list[str]) -> str:
    """ "" when there are none."""
    try:
        done = await process.run(show, deadline_s=_DEADLINE_S)
    except DriverError:
        return ""
    return _COUNTED.sub("", done.stdout.decode(errors="replace"))


def _driver_runs(layout: Layout) -> bool:
    lock = StateLock(layout.lock)
    if lock.try_open():
        lock.release()
        return False
    return True


async def _all(config: Config, wanted: str) -> dict[str, list[Evidence]]:
    found = machines(config, wanted)
    return {one.sandbox_id: await attacked(config, one) for one in found}


def attack(loaded: Loaded, wanted: str, *, as_json: bool) -> int:
    """1 when anything got further than it should."""
    if os.geteuid() != 0:
        raise Refused("an attack is begun by root, who gives everything away first")
    found = asyncio.run(_all(loaded.config, wanted))
    everything = [one for evidences in found.values() for one in evidences]
    failed = any(one.level == "fail" for one in everything)
    if as_json:
        shown = {key: [vars(one) for one in value] for key, value in found.items()}
        print_json({"ok": not failed, "sandboxes": shown})
        return int(failed)
    for sandbox_id, evidences in found.items():
        print(f"sandbox {sandbox_id}")
        for one in evidences:
            say("  ", leveled(one.level), f"  {one.control}: {one.text}")
    return int(failed)
