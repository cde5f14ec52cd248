"""lifecycle.ports.host.Hypervisor: one suite for the fake, libvirt's test driver and QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import qemu_owner
from tests.fakes.cgroup_tree import FakeCgroupTree
from tests.fakes.world import World
from tests.unit.test_plan_rendering import plan as example_plan
from vmdriver.errors import (
    HostError,
    HypervisorError,
    LoadRefused,
    NotFound,
    StorageError,
    TimedOut,
)
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import is_open_to_write
from vmdriver.host.threads import Threads
from vmdriver.hypervisor import monitor, qemu_process
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.guest_agent import GuestAgent
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.memory import capture
from vmdriver.hypervisor.memory.machine_memory import DomainMemory
from vmdriver.hypervisor.wall.box import BOX_PARTS
from vmdriver.hypervisor.wall.cgroup_place import Place
from vmdriver.hypervisor.wall.cgroups import Cgroups
from vmdriver.hypervisor.wall.sealing import Sealing
from vmdriver.lifecycle.ports.host import Found, Ownership
from vmdriver.lifecycle.ports.memory import SavedMachine
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

MARK = "vmdriver/test/s1"


@pytest.fixture
def plan(folder: Path, hypervisor: Any, request: pytest.FixtureRequest) -> LaunchPlan:
    """A plan whose files and tap exist; on QEMU it starts a guest that has nothing to boot from but its kernel."""
    value = example_plan()
    if hypervisor.name == "fake":
        world: World = hypervisor.world
        for made in (world.taps, world.tables, world.namespaces):
            made[value.network.lease.tap] = MARK
        world.files |= {value.disk("root").path, value.disk("seed").path}
        assert value.user is not None
        world.claimed_users.add(value.user.uid)
        world.file_users[value.disk("root").path] = value.user.uid
        return value
    if hypervisor.name != "QEMU":
        network = value.network.model_copy(update={"namespace": None})
        return value.model_copy(update={"network": network})
    # The host's taps are everybody's: another worker may be at this very test with other parameters.
    tap = f"vmdt{os.getpid()}"
    lease = value.network.lease.model_copy(update={"tap": tap})
    network = value.network.model_copy(update={"lease": lease, "namespace": tap})
    owner = owner_of(value)
    disks = []
    for disk in value.disks:
        path = folder / f"{disk.role}.img"
        path.write_bytes(b"\0" * 65536)
        os.chown(path, owner.uid, owner.gid)
        disks.append(
            disk.model_copy(update={"path": str(path), "format": "raw", "backing": ()})
        )
    console = folder / "console.log"
    console.touch()
    os.chown(console, owner.uid, owner.gid)
    boot = request.getfixturevalue("boot_files")
    return value.model_copy(
        update={
            "disks": tuple(disks),
            "network": network,
            "console": str(console),
            "kernel": str(boot / "kernel"),
            "initramfs": str(boot / "initramfs"),
            "memory_mib": 256,
            "wall": BOX_PARTS,
        }
    )


def owner_of(plan: LaunchPlan) -> Ownership:
    """Whose the machine's own files are."""
    assert plan.user is not None
    return Ownership(plan.user.uid, plan.user.gid)


def machine_memory(hypervisor: Any) -> DomainMemory:
    return DomainMemory(
        hypervisor.connection,
        Threads("contract", 2),
        hypervisor.sealing,
        emulator=hypervisor.emulator,
    )


@contextlib.contextmanager
def tap_of_its_own(name: str) -> Iterator[None]:
    """In a network namespace that has the same name."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        tap = ["tuntap", "add", name, "mode", "tap"]
        subprocess.run(["ip", "-n", name, *tap], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture(autouse=True)
def tap(plan: LaunchPlan, hypervisor: Any) -> Any:
    name = plan.network.lease.tap
    with (
        tap_of_its_own(name) if hypervisor.name == "QEMU" else contextlib.nullcontext()
    ):
        yield


async def test_what_is_not_there_is_absent_and_can_be_destroyed(
    hypervisor: Any,
) -> None:
    assert await hypervisor.observe("test-nobody") is DomainState.ABSENT
    await hypervisor.destroy("test-nobody")
    assert await hypervisor.marked() == []


async def test_a_machine_starts_is_found_and_is_destroyed_for_good(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    await hypervisor.start(plan, MARK)
    assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
    assert await hypervisor.marked() == [Found("domain", plan.domain, "s1")]
    for _ in range(2):
        await hypervisor.destroy(plan.domain)
    assert await hypervisor.observe(plan.domain) is DomainState.ABSENT
    await hypervisor.start(plan, MARK)
    await hypervisor.destroy(plan.domain)


async def test_qemu_is_in_the_machines_network_namespace_and_nobody_else(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU is a process")
    own = Path("/proc/self/ns/net").stat().st_ino
    await hypervisor.start(plan, MARK)
    directory = qemu_process.run_directory(hypervisor.connection.uri)
    pid = (directory / f"{plan.domain}.pid").read_text()
    inside = Path("/run/netns", plan.network.namespace).stat().st_ino
    assert Path(f"/proc/{pid}/ns/net").stat().st_ino == inside != own
    await hypervisor.destroy(plan.domain)
    stayed = {}
    for thread in Path("/proc/self/task").iterdir():
        # One that ends between the list and the look has not stayed.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, within = (thread / "comm").read_text(), thread / "ns" / "net"
            if within.stat().st_ino != own:
                stayed[thread.name] = name.strip()
    assert not stayed, "threads that stayed inside"


async def test_what_a_machine_holds_of_the_hosts_memory_is_told_while_it_is_there(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    assert await hypervisor.held_mib(plan.domain) is None
    if hypervisor.name == "fake":
        hypervisor.world.held_mib = 20
    await hypervisor.start(plan, MARK)
    held = await hypervisor.held_mib(plan.domain)
    if hypervisor.name == "QEMU":
        directory = qemu_process.run_directory(hypervisor.connection.uri)
        pid = (directory / f"{plan.domain}.pid").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) // 1024
        assert 5 < held <= resident + 64
    else:
        assert held == (20 if hypervisor.name == "fake" else None), "it is no process"
    await hypervisor.destroy(plan.domain)
    assert await hypervisor.held_mib(plan.domain) is None


async def test_two_machines_on_one_disk_are_refused(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    await hypervisor.start(plan, MARK)
    with pytest.raises(HostError):
        await hypervisor.start(plan, MARK)
    assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
    await hypervisor.destroy(plan.domain)


async def test_changes_are_hinted_at_in_the_loops_thread(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name == "fake":
        pytest.skip("the fake hints only when a test says so")
    hints: list[str] = []
    loop, came = asyncio.get_running_loop(), asyncio.Event()

    def hint(name: str) -> None:
        assert asyncio.get_running_loop() is loop
        hints.append(name)
        came.set()

    hypervisor.on_change(hint)
    await hypervisor.start(plan, MARK)
    await asyncio.wait_for(came.wait(), 5)
    assert set(hints) == {plan.domain}
    await hypervisor.destroy(plan.domain)


async def test_a_machine_can_be_given_to_somebody_else(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name == "libvirt test driver":
        pytest.skip("it keeps no metadata")
    await hypervisor.start(plan, MARK)
    await hypervisor.reassign(plan.domain, "vmdriver/test/s2")
    assert await hypervisor.marked() == [Found("domain", plan.domain, "s2")]
    await hypervisor.destroy(plan.domain)


@pytest.mark.parametrize("at_start", [(None, None), (400, None)])
async def test_a_machines_disks_are_limited_together_from_its_start_and_later(
    hypervisor: Any, plan: LaunchPlan, at_start: tuple[int | None, int | None]
) -> None:
    if hypervisor.name == "libvirt test driver":
        pytest.skip("its disks do nothing")

    async def limited() -> list[tuple[int | None, int | None]]:
        if hypervisor.name == "fake":
            return [hypervisor.world.limits[plan.domain]]
        found = await hypervisor.connection.call(
            "disks", lambda c: monitor.ask(c.lookupByName(plan.domain), "query-block")
        )
        disks = [disk["inserted"] for disk in found if "inserted" in disk]
        assert len(disks) == len(plan.disks)
        groups = {disk.get("group") for disk in disks}
        assert len(groups) == 1, "each disk has a limit of its own"
        return [(d["iops"] or None, d["bps"] // 2**20 or None) for d in disks]

    def with_limits(iops: int | None, mib_s: int | None) -> LaunchPlan:
        return plan.model_copy(update={"disk_iops": iops, "disk_mib_s": mib_s})

    await hypervisor.start(with_limits(*at_start), MARK)
    assert set(await limited()) == {at_start}
    for now in ((200, 7), (200, 7), (None, 3), (50, None), (None, None)):
        await hypervisor.limit(with_limits(*now))
        assert set(await limited()) == {now}
    await hypervisor.destroy(plan.domain)
    with pytest.raises(NotFound):
        await hypervisor.limit(plan)


async def test_a_machine_that_becomes_somebodys_gets_the_cpus_of_its_request(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU uses CPUs")
    await hypervisor.start(plan.model_copy(update={"cpu_quota_millis": None}), MARK)
    await hypervisor.limit(plan.model_copy(update={"cpu_quota_millis": 1500}))
    found = await hypervisor.connection.call(
        "cpus", lambda c: c.lookupByName(plan.domain).schedulerParameters()
    )
    assert (found["global_quota"], found["global_period"]) == (150_000, 100_000)
    await hypervisor.destroy(plan.domain)


async def test_a_guest_that_does_not_answer_is_given_up_in_time(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has a channel")
    memory = machine_memory(hypervisor)
    guest = GuestAgent(hypervisor.connection)
    with pytest.raises(NotFound):
        await guest.ping(plan.domain, 1.0)
    await hypervisor.start(plan, MARK)
    await memory.pause(plan.domain)
    async with asyncio.timeout(5):
        with pytest.raises(TimedOut):
            await guest.ping(plan.domain, 0.5)
    await hypervisor.destroy(plan.domain)


async def _pause_anew(memory: DomainMemory, plan: LaunchPlan) -> None:
    """QEMU writes its memory once per pause."""
    await memory.go_on(plan.domain)
    await memory.pause(plan.domain)


async def _begin_a_slow_stream(hypervisor: Any, plan: LaunchPlan, path: Path) -> None:
    """As a driver leaves it that is killed while QEMU writes."""

    def begin(connection: Any) -> None:
        machine = connection.lookupByName(plan.domain)
        with path.open("wb") as file:
            capture.hand_over(machine, os.dup(file.fileno()))
        monitor.ask(machine, "migrate-set-parameters", **{"max-bandwidth": 2**14})
        monitor.ask(machine, "migrate", uri="fd:vmdriver-memory")

    await hypervisor.connection.call("begin", begin)


async def test_memory_goes_to_a_file_and_back(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has memory")
    memory = machine_memory(hypervisor)
    await hypervisor.start(plan, MARK)
    await asyncio.sleep(0.5)
    await memory.pause(plan.domain)
    await memory.pause(plan.domain)
    path = folder / "memory, with a comma"
    path.touch()
    captured = await memory.capture(plan.domain, str(path), plan.memory_mib)
    assert path.stat().st_size == plan.memory_mib * 2**20
    assert 0 < captured.stored_bytes < path.stat().st_size
    assert captured.machine.startswith("pc-q35-")
    assert len(captured.state) < 2**20, "the pages are in the file"
    await _pause_anew(memory, plan)
    stream, split = folder / "stream", folder / "split"
    split.touch()
    streamed = await memory.stream(plan.domain, str(stream))
    again = await memory.split(streamed, str(split), plan.memory_mib)
    assert split.stat().st_size == path.stat().st_size
    # The guest's kernel has gone on meanwhile: on a busy host it is at its beginning.
    least, most = captured.stored_bytes - 2**20, captured.stored_bytes + 2**26
    assert least < again.stored_bytes < most
    assert abs(len(again.state) - len(captured.state)) < 4096
    assert not stream.exists()
    await _pause_anew(memory, plan)
    full = folder / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(StorageError):
        await memory.capture(plan.domain, str(full), plan.memory_mib)
    assert await hypervisor.observe(plan.domain) is DomainState.PAUSED
    await _pause_anew(memory, plan)
    await _begin_a_slow_stream(hypervisor, plan, folder / "abandoned")
    await memory.go_on(plan.domain)
    assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
    status = await hypervisor.connection.call(
        "status",
        lambda c: monitor.ask(c.lookupByName(plan.domain), "query-migrate"),
    )
    assert status["status"] == "cancelled", "QEMU would stop it again at its end"
    root, other_file = plan.disk("root").path, folder / "another layer"
    other_file.touch()
    assert await memory.holds(root, str(other_file))
    assert not await memory.holds(str(other_file), root)
    await hypervisor.destroy(plan.domain)
    assert await memory.holds(root, str(other_file)), "who knows"
    assert not await memory.holds(str(folder / "absent"), root)
    owner = owner_of(plan)
    os.chown(path, owner.uid, owner.gid)
    saved = SavedMachine(captured.state, captured.domain_xml, str(path))
    other = plan.model_copy(update={"domain": "test-other"})
    for target in (plan, other):
        target = target.model_copy(update={"domain_uuid": str(uuid.uuid4())})
        scratch = folder / "scratch"
        await memory.load(target, MARK, saved, str(scratch))
        assert not scratch.exists()
        assert await hypervisor.observe(target.domain) is DomainState.PAUSED
        with pytest.raises(HostError):
            await memory.load(target, MARK, saved, str(scratch))
        await memory.go_on(target.domain)
        await hypervisor.destroy(target.domain)
    await memory.go_on(plan.domain)


def _target(folder: Path, name: str, owner: Ownership) -> Path:
    """A file for a copy, as the store makes it."""
    path = folder / name
    path.touch()
    os.truncate(path, 64 * 2**20)
    os.chown(path, owner.uid, owner.gid)
    return path


async def _copied(memory: DomainMemory, domain: str) -> None:
    """Wait until nothing is left."""
    async with asyncio.timeout(20):
        while await memory.uncopied_bytes(domain) != 0:
            await asyncio.sleep(0.01)


async def test_disks_are_copied_while_the_machine_runs(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has disks")
    memory, owner = machine_memory(hypervisor), owner_of(plan)
    disk, domain, small = Path(plan.disk("status").path), plan.domain, folder / "small"
    os.truncate(disk, 64 * 2**20)
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), os.urandom(8 * 2**20), 5 * 2**20)
    small.mkdir(mode=0o755)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "-", small], check=True
    )
    try:
        await hypervisor.start(plan, MARK)
        full = _target(small, "full", owner)
        await memory.begin_copies(domain, {"status": str(full)})
        with pytest.raises(StorageError, match="No space left"):
            await _copied(memory, domain)
        with pytest.raises(StorageError):
            await memory.end_copies(domain, ["status"])
        assert await hypervisor.observe(domain) is DomainState.RUNNING
        # As by the next driver: what the last one began is dropped first.
        path = _target(folder, "a copy, with a comma", owner)
        await memory.begin_copies(domain, {"status": str(path)})
        await _copied(memory, domain)
        await memory.end_copies(domain, ["status"])
        assert path.read_bytes() == disk.read_bytes()
        assert path.stat().st_blocks * 512 < 10 * 2**20, "its zeros are holes"
        with path.open("rb") as file:
            assert not is_open_to_write(file.fileno())
        both = {"status": str(path), "root": str(_target(folder, "b", owner))}
        await memory.begin_copies(domain, both)
        for _ in range(2):
            await memory.drop_copies(domain)
        with pytest.raises(StorageError, match="gone"):
            await memory.end_copies(domain, ["status"])
        os.chown(path, 0, 0)
        with pytest.raises(HypervisorError, match="Permission denied"):
            await memory.begin_copies(domain, both)
        await memory.drop_copies(domain)
        known = await hypervisor.connection.call(
            "look",
            lambda c: [
                monitor.ask(c.lookupByName(domain), "query-jobs"),
                monitor.ask(
                    c.lookupByName(domain), "query-named-block-nodes", flat=True
                ),
            ],
        )
        assert known[0] == []
        assert "vmdriver-copy" not in str(known[1])
        await hypervisor.destroy(domain)
        await memory.drop_copies(domain)
    finally:
        await hypervisor.destroy(domain)
        subprocess.run(["umount", small], check=True)


async def _sealed_memory(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> tuple[Path, SavedMachine]:
    """A machine's memory, which nobody but root may write to."""
    memory = machine_memory(hypervisor)
    await hypervisor.start(plan, MARK)
    await asyncio.sleep(0.5)
    await memory.pause(plan.domain)
    path = folder / "memory"
    path.touch()
    captured = await memory.capture(plan.domain, str(path), plan.memory_mib)
    await hypervisor.destroy(plan.domain)
    os.chown(path, 0, owner_of(plan).gid)
    path.chmod(0o440)
    return path, SavedMachine(captured.state, captured.domain_xml, str(path))


def _rights_to(path: Path, process: Path) -> set[str]:
    """How a process has mapped that file, and how it has it open."""
    maps = [line.split() for line in (process / "maps").read_text().splitlines()]
    opened = [f.name for f in (process / "fd").iterdir() if f.readlink() == path]
    infos = [(process / "fdinfo" / name).read_text().split() for name in opened]
    modes = {int(info[info.index("flags:") + 1], 8) & os.O_ACCMODE for info in infos}
    return {m[1] for m in maps if m[-1] == str(path)} | {f"mode {m}" for m in modes}


@contextlib.contextmanager
def _beside(plan: LaunchPlan) -> Iterator[LaunchPlan]:
    """A second machine of that plan, with disks of its own: QEMU 10.0 locks them when it goes on."""
    tap = f"{plan.network.lease.tap}b"
    lease = plan.network.lease.model_copy(update={"tap": tap})
    network = plan.network.model_copy(update={"lease": lease, "namespace": tap})
    names: dict[str, object] = {
        "domain": f"{plan.domain}-two",
        "domain_uuid": str(uuid.uuid4()),
    }
    disks = [
        disk.model_copy(update={"path": f"{disk.path}.two"}) for disk in plan.disks
    ]
    for disk, own in zip(plan.disks, disks, strict=True):
        subprocess.run(["cp", "-p", disk.path, own.path], check=True)
    names["disks"] = tuple(disks)
    with tap_of_its_own(tap):
        yield plan.model_copy(update={**names, "network": network})


async def test_a_machine_cannot_write_to_the_memory_that_it_maps(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> None:
    """And two machines that map the same file change nothing of each other's."""
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has memory")
    memory, owner = machine_memory(hypervisor), owner_of(plan)
    assert await memory.seals()
    path, saved = await _sealed_memory(hypervisor, plan, folder)
    before = path.read_bytes()
    run = qemu_process.run_directory(hypervisor.connection.uri)
    with _beside(plan) as other:
        both = (plan, other)
        for each in both:
            await memory.load(each, MARK, saved, str(folder / "scratch"))
        for each in both:
            pid = int((run / f"{each.domain}.pid").read_text())
            read_only = f"mode {os.O_RDONLY}"
            assert _rights_to(path, Path(f"/proc/{pid}")) <= {"rw-p", read_only}
            assert "rw-p" in _rights_to(path, Path(f"/proc/{pid}"))
            await memory.go_on(each.domain)
        as_it = ["setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}"]
        write = [*as_it, "--clear-groups", "sh", "-c", ': >>"$0"', str(path)]
        tried = subprocess.run(write, capture_output=True, text=True, check=False)
        assert "Permission denied" in tried.stderr
        for each in both:
            assert await hypervisor.observe(each.domain) is DomainState.RUNNING
            await hypervisor.destroy(each.domain)
    assert path.read_bytes() == before


@pytest.mark.parametrize("way", ["boots", "comes from memory"])
@pytest.mark.parametrize("refused", [False, True])
async def test_a_machine_runs_in_its_cgroup_or_not_at_all(
    hypervisor: Any, plan: LaunchPlan, folder: Path, way: str, refused: bool
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU is a process")
    saved = None
    if way == "comes from memory":
        _, saved = await _sealed_memory(hypervisor, plan, folder)
    connection = hypervisor.connection
    run = qemu_process.run_directory(connection.uri)
    root = folder / "cgroup"
    tree = FakeCgroupTree(root, {"memory", "pids"}, set(range(1, 2**17)))
    cgroups = Cgroups(Place(root, is_root=True), "test", "", run, tree)
    cgroups.prepare()
    tree.refused = {"cgroup.procs": errno.EPERM} if refused else {}
    abilities = Abilities(connection, qemu_owner())
    machines = Machines(connection, "test", abilities, cgroups=cgroups)
    threads = Threads("contract", 2)
    memory = DomainMemory(
        connection,
        threads,
        hypervisor.sealing,
        cgroups=cgroups,
        emulator=machines.emulator,
    )
    plan = plan.model_copy(update={"wall": ("cgroup",)})
    begun = (
        machines.start(plan, MARK)
        if saved is None
        else memory.load(plan, MARK, saved, str(folder / "scratch"))
    )
    own = root / "test" / plan.domain
    if refused:
        with pytest.raises(HypervisorError, match="cgroup"):
            await begun
        assert await machines.observe(plan.domain) in {
            *(DomainState.OFF, DomainState.ABSENT)
        }
    else:
        await begun
        pid = int((run / f"{plan.domain}.pid").read_text())
        assert tree.of(pid) == own
        assert "memory.max" in tree.nodes[own].limits
    await machines.destroy(plan.domain)
    assert own not in tree.nodes
    assert await machines.observe(plan.domain) is DomainState.ABSENT


async def test_without_a_way_to_only_read_it_no_machine_maps_memory(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has memory")
    if await hypervisor.connection.call("v", lambda c: c.getVersion()) >= 8_002_000:
        pytest.skip("this QEMU can be told")
    _, saved = await _sealed_memory(hypervisor, plan, folder)
    threads, sealing = Threads("contract", 2), Sealing(folder)
    without = DomainMemory(
        hypervisor.connection, threads, sealing, emulator=hypervisor.emulator
    )
    assert not await without.seals()
    with pytest.raises(HypervisorError, match="Permission denied"):
        await without.load(plan, MARK, saved, str(folder / "scratch"))
    await hypervisor.destroy(plan.domain)


async def test_a_state_that_qemu_does_not_take_is_told_from_a_qemu_that_was_killed(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has memory")
    memory = machine_memory(hypervisor)
    await hypervisor.start(plan, MARK)
    await asyncio.sleep(0.5)
    await memory.pause(plan.domain)
    path, scratch = folder / "memory", str(folder / "scratch")
    path.touch()
    captured = await memory.capture(plan.domain, str(path), plan.memory_mib)
    await hypervisor.destroy(plan.domain)
    owner = owner_of(plan)
    os.chown(path, owner.uid, owner.gid)

    async def load(state: bytes) -> None:
        saved = SavedMachine(state, captured.domain_xml, str(path))
        await memory.load(plan, MARK, saved, scratch)

    # QEMU 7.2, and what is left of it with QEMU 10.0 and libvirt 11.3.
    words = "Not a migration stream|load of migration failed: Invalid argument"
    with pytest.raises(LoadRefused, match=words):
        await load(b"XXXX" + captured.state[4:])
    await hypervisor.destroy(plan.domain)
    run = qemu_process.run_directory(hypervisor.connection.uri)
    pid = run / f"{plan.domain}.pid"
    for delay_s in (0.0, 0.05, 0.2):
        loading = asyncio.create_task(load(captured.state))
        async with asyncio.timeout(30):
            while not pid.exists() and not loading.done():
                await asyncio.sleep(0.002)
        await asyncio.sleep(delay_s)
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
        # Before it was killed, on a fast host.
        with contextlib.suppress(HypervisorError):
            try:
                await loading
            except LoadRefused as error:
                pytest.fail(f"it says nothing of the image: {error.message}")
        await hypervisor.destroy(plan.domain)


async def _hang(hypervisor: Any, plan: LaunchPlan) -> int:
    """Have a QEMU that does not react, and a call that waits for it; its process id."""
    await hypervisor.start(plan, MARK)
    run = qemu_process.run_directory(hypervisor.connection.uri)
    pid = int((run / f"{plan.domain}.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_machine_that_does_not_react_is_ended_and_costs_nobody_else_a_wait(
    hypervisor: Any, plan: LaunchPlan, asked_before: bool
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU can hang")
    memory = machine_memory(hypervisor)
    pid = await _hang(hypervisor, plan)
    try:
        if asked_before:
            pausing = asyncio.create_task(memory.pause(plan.domain))
            await asyncio.sleep(0.3)
            hypervisor.abandon(plan.domain)
            with pytest.raises(TimedOut, match="given up"):
                await pausing
            with pytest.raises(TimedOut, match="no answer"):
                await memory.go_on(plan.domain)
        async with asyncio.timeout(5):
            assert await hypervisor.observe(plan.domain) is not DomainState.ABSENT
            assert len(await hypervisor.marked()) == 1
        async with asyncio.timeout(20):
            await hypervisor.destroy(plan.domain)
        assert not Path(f"/proc/{pid}/exe").exists()
        assert await hypervisor.observe(plan.domain) is DomainState.ABSENT
        await memory.go_on(plan.domain)
        assert not hypervisor.connection.lanes.is_busy(plan.domain)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_a_capture_that_does_not_move_is_given_up(
    hypervisor: Any, plan: LaunchPlan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU has memory")
    monkeypatch.setattr(capture, "STALL_S", 1.0)
    memory = machine_memory(hypervisor)
    await hypervisor.start(plan, MARK)
    await memory.pause(plan.domain)
    # Nobody reads at the other end.
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def stuck(connection: Any) -> None:
        machine = connection.lookupByName(plan.domain)
        capture.hand_over(machine, os.open(pipe, os.O_WRONLY))
        capture.migrate(machine, Pulse())

    async with asyncio.timeout(20):
        with pytest.raises(TimedOut, match="QEMU does not"):
            await hypervisor.connection.call("stuck", stuck, plan.domain)
        os.close(reader)
        await memory.go_on(plan.domain)
        assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
    await hypervisor.destroy(plan.domain)


EMPTY = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>"""


async def test_with_nine_machines_hung_a_tenth_is_as_always(hypervisor: Any) -> None:
    """They hold every call that was made for them; the nine are ended together, in time."""
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU can hang")
    memory = machine_memory(hypervisor)
    run = qemu_process.run_directory(hypervisor.connection.uri)
    nine = [f"test-hung-{n}" for n in range(9)]
    pids: list[int] = []
    try:
        for name in nine:
            await hypervisor.start_xml(name, EMPTY.format(name=name))
            pids.append(int((run / f"{name}.pid").read_text()))
            os.kill(pids[-1], signal.SIGSTOP)
        waiting = [asyncio.create_task(memory.pause(name)) for name in nine]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        async with asyncio.timeout(12):
            await hypervisor.start_xml("test-tenth", EMPTY.format(name="test-tenth"))
            await memory.pause("test-tenth")
            await memory.go_on("test-tenth")
            assert await hypervisor.observe("test-tenth") is DomainState.RUNNING
            await hypervisor.marked()
            await hypervisor.destroy("test-tenth")
        for name in nine:
            hypervisor.abandon(name)
        async with asyncio.timeout(25):
            await asyncio.gather(*(hypervisor.destroy(name) for name in nine))
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
