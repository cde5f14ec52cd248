"""Who can do what with a machine's files: asked as that user, not by looking at bits."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.worker import WORKER
from tests.fakes.world import World
from vmdriver.host.side_by_side import together
from vmdriver.host.threads import Threads
from vmdriver.host.users import access
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.checkpoint import MEMORY
from vmdriver.model.machine_uids import MachineUids
from vmdriver.model.plan import LaunchPlan, MachineUser
from vmdriver.storage.checkpoints import Checkpoints
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layers.machine_users import MachineUsers
from vmdriver.storage.layout import Layout
from vmdriver.storage.paths import FilePaths
from vmdriver.storage.sandboxes.launch_files import LaunchFiles

BASE = 250000 + 1000 * WORKER
UIDS = MachineUids(BASE + 100, BASE + 199)
FIRST, SECOND = UIDS.user(BASE + 102), UIDS.user(BASE + 103)
EARLIER = MachineUser(uid=BASE + 90, gid=BASE + 90)
STRANGER = MachineUser(uid=65534, gid=65534)


@pytest.fixture
def layout() -> Iterator[Layout]:
    """Where other users get to: pytest's own folders are closed to them."""
    root = Path(tempfile.mkdtemp(prefix="vmdriver-possession-"))
    root.chmod(0o755)
    layout = Layout(root / "state")
    layout.make()
    (layout.images / "disks").mkdir(mode=0o711)
    (layout.images / "disks").chmod(0o711)
    (layout.images / "disks" / "base.ext4").write_bytes(b"\0" * 2**20)
    (layout.supervisors / "x.img").write_bytes(b"\0" * 4096)
    yield layout
    shutil.rmtree(root)


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("possession", 2)
    yield threads
    threads.close()


async def usable(path: str | Path, user: MachineUser) -> str:
    """ "rw", "r" or ""."""
    for rights, wanted in (("rw", "use"), ("r", "read")):
        if not await access.denied([str(path)], wanted, user.uid, user.gid):  # type: ignore[arg-type]
            return rights
    return ""


async def plan_of(layout: Layout, name: str, user: MachineUser | None) -> LaunchPlan:
    """A machine's, on the base, with a layer of its own."""
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec(name), None)
    await driver.settled()
    plan = driver.plan(name)
    await driver.close()
    paths, folder = FilePaths(layout).of(name), layout.sandbox(name).root
    folder.mkdir(mode=0o700)
    places = {
        "seed": paths.seed,
        "status": paths.status,
        "supervisor": str(layout.supervisors / "x.img"),
    }
    disks = tuple(
        disk.model_copy(update={"path": places.get(disk.role, disk.path)})
        for disk in plan.disks
    )
    plan = plan.model_copy(
        update={"disks": disks, "console": paths.console, "user": user}
    )
    layer = FilePaths(layout).new_layer(name, user)
    return planner.on_layers(plan, (layer,), str(layout.images / "disks" / "base.ext4"))


async def launched(
    layout: Layout, threads: Threads, name: str, user: MachineUser | None
) -> LaunchPlan:
    """Its files, as a launch makes them."""
    plan, owner = await plan_of(layout, name, user), Ownership(EARLIER.uid, EARLIER.gid)
    await DiskStore(layout, threads, owner).create_overlay(plan.disk("root"), user)
    await LaunchFiles(layout, threads, owner).write(plan, {}, {})
    return plan


def own_files(plan: LaunchPlan) -> dict[str, str]:
    """What its machine may do with each."""
    return {
        plan.disk("root").path: "rw",
        plan.disk("status").path: "rw",
        plan.console: "rw",
        plan.disk("seed").path: "r",
    }


async def test_a_machine_has_its_files_and_nobody_elses(
    layout: Layout, threads: Threads
) -> None:
    first = await launched(layout, threads, "s1", FIRST)
    second = await launched(layout, threads, "s2", SECOND)
    for plan, user, other in ((first, FIRST, SECOND), (second, SECOND, FIRST)):
        for path, rights in own_files(plan).items():
            assert await usable(path, user) == rights, path
            for nobody in (other, EARLIER, STRANGER):
                assert await usable(path, nobody) == "", path
    for shared in (first.disk("root").backing[-1], first.disk("supervisor").path):
        assert [await usable(shared, u) for u in (FIRST, SECOND)] == ["r", "r"]
        assert await usable(shared, STRANGER) == ""


async def test_a_machine_makes_renames_and_removes_nothing(
    layout: Layout, threads: Threads
) -> None:
    plan = await launched(layout, threads, "s1", FIRST)
    for path in own_files(plan):
        folder = str(Path(path).parent)
        assert not await access.denied([folder], "pass", FIRST.uid, FIRST.gid)
        assert await access.denied([folder], "read", FIRST.uid, FIRST.gid)
        assert await access.denied([folder], "use", FIRST.uid, FIRST.gid)
        assert await access.denied([folder], "pass", SECOND.uid, SECOND.gid)


async def test_a_frozen_layer_is_read_by_its_machine_and_by_those_that_stand_on_it(
    layout: Layout, threads: Threads
) -> None:
    owner = Ownership(EARLIER.uid, EARLIER.gid)
    disks = DiskStore(layout, threads, owner)
    first = await launched(layout, threads, "s1", FIRST)
    frozen = first.disk("root").path
    await disks.freeze_layer(frozen, FIRST)
    assert [await usable(frozen, u) for u in (FIRST, SECOND)] == ["r", ""]
    store = Checkpoints(threads, owner)
    (was,) = await store.identify((frozen,))
    second = await plan_of(layout, "s2", SECOND)
    base = second.disk("root").backing[-1]
    second = planner.on_layers(second, (frozen, second.disk("root").path), base)
    await disks.create_overlay(second.disk("root"), SECOND)
    await LaunchFiles(layout, threads, owner).write(second, {}, {})
    assert [await usable(frozen, u) for u in (FIRST, SECOND)] == ["r", "r"]
    assert await usable(frozen, STRANGER) == ""
    await disks.freeze_layer(frozen, FIRST)  # by its next snapshot, as it is below
    assert [await usable(frozen, u) for u in (FIRST, SECOND)] == ["r", "r"]
    assert (was,) == await store.identify((frozen,)), "it is the file that it was"
    third = UIDS.user(BASE + 104)
    assert await usable(frozen, third) == "", "who knows the name, and no more"


async def test_the_last_layer_of_a_machine_that_is_gone_takes_its_folder_along(
    layout: Layout, threads: Threads
) -> None:
    disks = DiskStore(layout, threads, Ownership(EARLIER.uid, EARLIER.gid))
    users = MachineUsers(layout, threads)
    layers = []
    for _ in range(2):
        layers.append(FilePaths(layout).new_layer("s1", FIRST))
        plan = await plan_of(layout, f"s{len(layers)}", FIRST)
        base = plan.disk("root").backing[-1]
        root = planner.on_layers(plan, (layers[-1],), base).disk("root")
        await disks.create_overlay(root, FIRST)
    folder = Path(layers[0]).parent
    await disks.remove(layers[0])
    await users.clear(FIRST.uid, "s1")
    assert folder.is_dir()
    await disks.remove(layers[1])
    assert not folder.exists()
    living = FilePaths(layout).new_layer("s3", SECOND)
    await disks.create_overlay(root.model_copy(update={"path": living}), SECOND)
    await disks.remove(living)
    assert Path(living).parent.is_dir(), "its machine has it"


async def test_a_fork_that_goes_takes_the_folder_of_a_machine_that_went_before_it_along(
    layout: Layout, threads: Threads
) -> None:
    disks = DiskStore(layout, threads, Ownership(EARLIER.uid, EARLIER.gid))
    users = MachineUsers(layout, threads)
    assert await users.claim(FIRST.uid)
    assert await users.claim(SECOND.uid)
    plan = await launched(layout, threads, "s1", FIRST)
    below = plan.disk("root").path
    await disks.freeze_layer(below, FIRST)
    fork = await plan_of(layout, "s2", SECOND)
    top, base = fork.disk("root").path, fork.disk("root").backing[-1]
    fork = planner.on_layers(fork, (below, top), base)
    await disks.create_overlay(fork.disk("root"), SECOND)
    owner = Ownership(EARLIER.uid, EARLIER.gid)
    await LaunchFiles(layout, threads, owner).write(fork, {}, {})
    await users.clear(FIRST.uid, "s1")
    assert Path(below).exists(), "the fork stands on it"
    for path in (top, below):  # as its delete: what it held, then its user
        await disks.remove(path)
    await users.clear(SECOND.uid, "s2")
    assert list(layout.layers.iterdir()) == []


async def test_a_frozen_layer_that_a_merge_writes_to_is_its_machines_again(
    layout: Layout, threads: Threads
) -> None:
    """qemu-img runs as that machine, on a base and layers that it may only read otherwise."""
    disks = DiskStore(layout, threads, Ownership(EARLIER.uid, EARLIER.gid))
    files = LaunchFiles(layout, threads, Ownership(EARLIER.uid, EARLIER.gid))
    plan = await launched(layout, threads, "s1", FIRST)
    base, chain = plan.disk("root").backing[-1], (plan.disk("root").path,)
    for _ in range(2):
        await disks.freeze_layer(chain[-1], FIRST)
        chain = (*chain, FilePaths(layout).new_layer("s1", FIRST))
        plan = planner.on_layers(plan, chain, base)
        await disks.create_overlay(plan.disk("root"), FIRST)
    await files.write(plan, {}, {})
    assert [await usable(path, FIRST) for path in chain] == ["r", "r", "rw"]
    await disks.merge_layer(plan.disk("root"), FIRST)
    assert [await usable(path, FIRST) for path in chain] == ["r", "rw", "rw"]
    assert [await usable(path, SECOND) for path in chain] == ["", "", ""]


async def test_a_template_is_read_by_every_machine_and_written_by_none(
    layout: Layout, threads: Threads
) -> None:
    owner = Ownership(EARLIER.uid, EARLIER.gid)
    disks, store = DiskStore(layout, threads, owner), Checkpoints(threads, owner)
    plan = await plan_of(layout, "s1", FIRST)
    layer = FilePaths(layout).new_layer("template-a", None)
    plan = planner.on_layers(plan, (layer,), plan.disk("root").backing[-1])
    await disks.create_overlay(plan.disk("root"), FIRST)
    memory = await store.begin(str(layout.templates / "a.part"), 0)
    assert await usable(layer, FIRST) == "rw"
    assert await usable(memory, FIRST) == ""
    await disks.share_layer(layer, FIRST)
    await store.share(str(layout.templates / "a.part"), FIRST)
    for path in (layer, memory):
        assert [await usable(path, u) for u in (FIRST, SECOND)] == ["r", "r"], path
        assert await usable(path, STRANGER) == "", path


async def test_memory_is_lent_to_its_machine_for_reading_and_taken_back(
    layout: Layout, threads: Threads
) -> None:
    store = Checkpoints(threads, Ownership(EARLIER.uid, EARLIER.gid))
    await launched(layout, threads, "s1", FIRST)
    directory = layout.sandbox("s1").suspended
    await store.begin(str(directory), 0)
    memory = directory / MEMORY
    assert await usable(memory, FIRST) == ""
    await store.lend(str(directory), FIRST)
    assert [await usable(memory, u) for u in (FIRST, SECOND)] == ["r", ""]
    assert memory.stat().st_uid == os.geteuid(), "else he could make it his to write to"
    await store.take_back(str(directory))
    assert await usable(memory, FIRST) == ""


async def test_lending_a_memory_changes_nothing_of_what_it_is_known_by(
    layout: Layout, threads: Threads
) -> None:
    """It is compared before, while and after it is lent, also where an earlier driver had given it
    away.
    """
    store = Checkpoints(threads, Ownership(EARLIER.uid, EARLIER.gid))
    await launched(layout, threads, "s1", FIRST)
    directory = str(layout.sandbox("s1").suspended)
    memory = await store.begin(directory, 0)
    os.chown(memory, FIRST.uid, FIRST.gid)
    os.chmod(memory, 0o600)
    found = []
    await store.take_back(directory)
    found += await store.identify((memory,))
    await store.lend(directory, FIRST)
    found += await store.identify((memory,))
    await store.lend(directory, None)
    await store.take_back(directory)
    found += await store.identify((memory,))
    assert found == [found[0]] * 3
    assert [await usable(memory, u) for u in (FIRST, EARLIER)] == ["", ""]


async def test_what_an_earlier_driver_made_is_its_machines_from_the_next_start_on(
    layout: Layout, threads: Threads
) -> None:
    """Layers in one folder, of one user, on a base that everybody could read."""
    owner = Ownership(EARLIER.uid, EARLIER.gid)
    disks, files = (
        DiskStore(layout, threads, owner),
        LaunchFiles(layout, threads, owner),
    )
    old = await plan_of(layout, "s1", None)
    layout.sandbox("s1").root.chmod(0o711)
    base = old.disk("root").backing[-1]
    os.chmod(base, 0o444)
    names = ("template-x.0000000a", "s1.0000000b", "s1.0000000c")
    chain = tuple(str(layout.layers / f"{name}.qcow2") for name in names)
    for number in range(len(chain)):
        old = planner.on_layers(old, chain[: number + 1], base)
        await disks.create_overlay(old.disk("root"), None)
    shared, frozen, top = chain
    for path in (shared, frozen):
        await disks.freeze_layer(path, None)
    await files.write(old, {}, {})
    for path in (base, shared, frozen, top, old.disk("status").path):
        assert await usable(path, EARLIER)
        assert path == base or await usable(path, FIRST) == ""

    now = old.model_copy(update={"user": FIRST})
    for _ in range(2):  # another start finds all as it is to be
        await files.write(now, {}, {})
    for path, rights in {**own_files(now), top: "rw", frozen: "r"}.items():
        assert await usable(path, FIRST) == rights, path
        assert await usable(path, SECOND) == "", path
    assert [await usable(p, SECOND) for p in (base, shared)] == ["r", "r"]
    for path in (base, shared, frozen):
        assert await usable(path, EARLIER) == "r", "one of then may run on it still"
        assert await usable(path, STRANGER) == ""


async def test_another_start_changes_nothing_of_what_is_right(
    layout: Layout, threads: Threads
) -> None:
    """The time of the last change tells whether a suspended machine's disk is the one that it was."""
    plan = await launched(layout, threads, "s1", FIRST)
    root, owner = plan.disk("root"), Ownership(EARLIER.uid, EARLIER.gid)
    kept = [Path(path) for path in (root.path, root.backing[-1])]
    was = [path.stat().st_ctime_ns for path in kept]
    await LaunchFiles(layout, threads, owner).write_for_resume(plan, {}, {})
    assert [path.stat().st_ctime_ns for path in kept] == was


@pytest.mark.parametrize("user", [FIRST, None], ids=["own user", "earlier"])
async def test_layer_and_files_that_are_made_at_one_time_are_as_one_after_the_other(
    user: MachineUser | None, layout: Layout, threads: Threads
) -> None:
    """Also where a launch that was cut off has left both; what they are owned by is the same."""
    plan, owner = await plan_of(layout, "s1", user), Ownership(EARLIER.uid, EARLIER.gid)
    disks = DiskStore(layout, threads, owner)
    launch_files = LaunchFiles(layout, threads, owner)
    for number in range(60):
        if number % 3 == 0:
            for path in own_files(plan):
                Path(path).unlink(missing_ok=True)
        await together(
            disks.create_overlay(plan.disk("root"), user),
            launch_files.write(plan, {}, {}),
        )
        await disks.check_layers(plan.disk("root"))
        for path in own_files(plan):
            info = Path(path).stat()
            assert info.st_uid == (user or EARLIER).uid, path
            assert not info.st_mode & 0o077, path
        if number % 20 == 0 and user is not None:
            for path, rights in own_files(plan).items():
                assert await usable(path, user) == rights
                assert not await usable(path, SECOND)
