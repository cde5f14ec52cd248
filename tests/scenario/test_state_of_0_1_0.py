"""A state directory that release 0.1.0 has left is taken up, and nothing of it is lost.

tests/fixtures/state-0.1.0/README.md says what is in it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.composed import composed, until
from tests.fakes.composed import config as composed_config
from tests.fakes.disk_driver import DiskDriver, config
from tests.fakes.earlier_extensions import Follower, Outside, Recorder
from tests.fakes.earlier_state import EarlierState, has_tick
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.world import Crash
from tests.fakes.world_on_disk import world_of
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import layers_of

RAN = {"booted", "forked", "resumed", "claimed", "copy", "shelved", "source", "larger"}
RESTED = {
    "suspended": Phase.SUSPENDED,
    "stopped": Phase.STOPPED,
    "owing": Phase.STOPPED,
    "exited": Phase.FAILED,
    "refused": Phase.FAILED,
}
HALF_DONE = {
    "half-written": Phase.RUNNING,
    "half-connected": Phase.RUNNING,
    "half-started": Phase.RUNNING,
    "half-noted": Phase.RUNNING,
    "half-claimed": Phase.RUNNING,
    "half-snapshot": Phase.RUNNING,
    "half-switched": Phase.RUNNING,
    "half-loaded": Phase.RUNNING,
    "half-resumed": Phase.RUNNING,
    "half-returned": Phase.RUNNING,
    "half-suspended": Phase.SUSPENDED,
    "half-published": Phase.SUSPENDED,
    "half-stopped": Phase.STOPPED,
}
ENDS = {"half-created", "half-deleted"}
"""A create that nobody was given an answer to, and a delete."""


class TakenUp:
    """A driver of today on that state."""

    def __init__(self, root: Path, *, rebooted: bool = False) -> None:
        self.state = EarlierState(root, boot_id="an-earlier-boot" if rebooted else "")
        self.world = world_of(self.state, rebooted=rebooted)
        self.before = dict(self.world.domains)
        self.outside = Outside(root / "outside")
        self.root = root / "state"

    def new_driver(self) -> DiskDriver:
        self.driver = DiskDriver(
            config(self.root.parent, instance="earlier"),
            self.world,
            [Follower(self.outside), Recorder(self.outside)],
        )
        return self.driver

    async def begin(self) -> DiskDriver:
        driver = self.new_driver()
        await driver.begin()
        await driver.settled()
        return driver

    async def begin_and_be_killed(self, effects: int) -> None:
        """At the driver's effect of that number on the host."""
        seen, killed = [], asyncio.Event()

        def kill(call: str) -> bool:
            seen.append(call)
            if len(seen) == effects:
                self.world.dead = True
                killed.set()
                raise Crash(call)
            return False

        self.world.fail = kill
        driver = self.new_driver()
        beginning = asyncio.create_task(driver.begin())
        async with asyncio.timeout(20):
            await killed.wait()
        self.world.fail = lambda _call: False
        await driver.kill()
        assert beginning.done()

    def domain(self, sandbox_id: str) -> str:
        plan = self.driver.record(sandbox_id).plan
        assert plan is not None
        return plan.domain

    def disk(self, sandbox_id: str) -> str:
        return self.driver.record(sandbox_id).layers[-1]

    async def all_claimed(self) -> None:
        """Nothing is on the host or on disk that belongs to nobody, once no template is being built any more."""
        for _ in range(500):
            if not (found := self._unclaimed()):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(found)

    def _unclaimed(self) -> list[str]:
        driver, found = self.driver, []
        up = {n for n, phase in driver.phases().items() if phase is Phase.RUNNING}
        for objects in (self.world.taps, self.world.tables):
            found += [m for m in objects.values() if m.split("/")[-1] not in up]
        for domain in self.world.domains:
            owner = self.world.marks[domain].split("/")[-1]
            found += [domain] if owner not in driver.names() else []
        needed = driver.manager.templates.layers()
        for name in driver.names():
            needed |= layers_of(driver.record(name))
        layers = self.root / "layers"
        # A machine that came up with this driver has a user, whose layers go there.
        needed |= {str(layers / str(number)) for number in driver.core.users.held()}
        found += {str(p) for p in (self.root / "layers").iterdir()} - needed
        sandboxes = self.root / "sandboxes"
        found += [p.name for p in sandboxes.iterdir() if p.name not in driver.names()]
        found += [str(p) for p in sandboxes.glob("*/capture.part")]
        found += [str(p) for p in sandboxes.glob("*/load.image")]
        waiting = {p.name for p in (self.root / "warm").iterdir()}
        for name in waiting:  # one that is a sandbox's by now leads to its files
            links = list((self.root / "warm" / name).iterdir())
            found += [] if links and all(p.exists() for p in links) else [name]
        return found


@pytest.fixture
async def taken_up(tmp_path: Path) -> AsyncIterator[TakenUp]:
    found = TakenUp(tmp_path)
    await found.begin()
    yield found
    await found.driver.end()


async def test_what_ran_runs_on_and_what_rested_rests(taken_up: TakenUp) -> None:
    driver, world = taken_up.driver, taken_up.world
    assert driver.phases() == {
        **dict.fromkeys(RAN, Phase.RUNNING),
        **RESTED,
        **HALF_DONE,
    }
    for name in RAN:
        domain = taken_up.domain(name)
        assert domain in taken_up.before
        assert domain not in world.starts
        assert f"destroy {domain}" not in world.calls
        last = taken_up.state.host["ticks"][domain]
        assert driver.tick(name) == last + 1, f"{name} did not go on"
    exited, refused = driver.record("exited").failure, driver.record("refused").failure
    assert exited is not None
    assert (exited.reason, exited.exit_code) == ("MainProcessExited", 3)
    assert exited.message == "the main process ended with exit code 3"
    assert refused is not None
    assert refused.reason == "ProvisioningFailed"
    assert refused.message == "NoLicence: no licence for that"
    shown = {status.id: status.conditions[0] for status in driver.manager.statuses()}
    assert shown.keys() == driver.names()
    for name, failure in {"exited": exited, "refused": refused}.items():
        assert (shown[name].status, shown[name].reason) == ("False", failure.reason)
        assert shown[name].message == failure.message
    assert (shown["suspended"].type, shown["suspended"].reason) == (
        "Suspended",
        "Suspended",
    )
    assert shown["stopped"].reason == "Stopped"
    assert "memory image is damaged" in shown["shelved"].message
    assert (taken_up.root / "sandboxes/shelved/not-restored/manifest.json").exists()
    assert (taken_up.root / "sandboxes/booted/token").read_text() == "token-of-booted"


async def test_what_was_half_done_is_done_or_undone_and_nothing_is_left_over(
    taken_up: TakenUp,
) -> None:
    driver, world = taken_up.driver, taken_up.world
    assert driver.names().isdisjoint(ENDS)
    assert not (taken_up.root / "set-aside").exists(), "it was not known as ours"
    await taken_up.all_claimed()
    assert not world.frozen - {taken_up.domain("half-loaded")}
    begun = {"half-written", "half-connected", "half-started", "half-claimed"}
    for name in begun:
        assert world.starts[taken_up.domain(name)] == 1
        assert driver.record(name).launches == 2
    # It was started, and nobody had noted it: that counts.
    assert taken_up.domain("half-noted") not in world.starts
    assert driver.record("half-noted").launches == 1
    for name in ("half-snapshot", "half-switched"):
        assert driver.tick(name) == 3
        assert driver.record(name).snapshots == ()
        assert has_tick(taken_up.disk(name), 3)
    # The machine wrote to the snapshot's new layer already.
    assert len(driver.record("half-switched").layers) == 3
    assert len(driver.record("half-snapshot").layers) == 2
    for name in ("half-loaded", "half-resumed"):
        assert driver.tick(name) == 3, "not what it was when it was suspended"
    assert driver.tick("half-returned") == 3, "not what it was at its snapshot"
    assert has_tick(taken_up.disk("half-stopped"), 2)


async def test_kept_memories_snapshots_and_disks_are_what_they_were(
    taken_up: TakenUp,
) -> None:
    driver = taken_up.driver
    for name in ("suspended", "half-suspended", "half-published"):
        await driver.resume(name)
        assert driver.tick(name) == 3, "not what it was when it was suspended"
    for name in ("stopped", "owing"):
        disk = taken_up.disk(name)
        await driver.resume(name)
        assert taken_up.disk(name) == disk
        assert name == "owing" or has_tick(disk, 2)
    entries = driver.record("source").snapshots
    assert [e.name for e in entries] == ["first", "second"]
    assert [e.memory is not None for e in entries] == [True, False]
    await driver.restore("source", "second")
    assert has_tick(taken_up.disk("source"), 3)
    await driver.restore("source", "first")
    assert has_tick(taken_up.disk("source"), 2)
    assert driver.tick("source") == 3
    copied = driver.record("copy").layers
    assert copied[:-1] == entries[0].layers
    await driver.manager.delete("source", "")
    await driver.manager.stop("copy", "")
    assert all(Path(layer).exists() for layer in copied)
    await driver.resume("copy")
    assert has_tick(taken_up.disk("copy"), 4)


async def test_a_new_sandbox_stands_beside_the_old_ones(taken_up: TakenUp) -> None:
    """From the same image, whose registry is away: the cache has it."""
    driver = taken_up.driver
    leases = [driver.record(name).lease for name in driver.names()]
    old = driver.record("copy")
    spec = old.spec.model_copy(update={"id": "new", "name": "new", "driver_config": {}})
    await driver.manager.create(spec, None)
    await driver.settled()
    new = driver.record("new")
    assert new.phase is Phase.RUNNING
    assert new.base == old.base
    assert new.lease is not None
    assert new.lease.guest_ip not in {lease.guest_ip for lease in leases if lease}
    (known,) = await driver.images.known()
    assert known.disk.path == new.base
    assert old.spec.image.partition("@")[2] == known.disk.digest


@pytest.mark.parametrize("newer_boot_files", [False, True])
async def test_a_template_that_its_machine_could_write_to_is_collected(
    tmp_path: Path, newer_boot_files: bool
) -> None:
    """Of that release, with its boot files or newer ones: its key is another. Who stands on it does."""
    taken_up = TakenUp(tmp_path)
    by_end = {path.suffix: path for path in (taken_up.root / "templates").iterdir()}
    directory, half_made = by_end[""], by_end[".part"]
    layer = json.loads((directory / "manifest.json").read_text())["plan"]["disks"][0]
    if newer_boot_files:
        boot = taken_up.root / "boot"
        shutil.copytree((boot / "current").resolve(), boot / "newer")
        manifest = json.loads((boot / "newer" / "manifest.json").read_text())
        manifest["digest"] = "newer"
        (boot / "newer" / "manifest.json").write_text(json.dumps(manifest))
        (boot / "current").unlink()
        (boot / "current").symlink_to("newer")
    driver = await taken_up.begin()
    try:
        keys = {template.key for template in driver.manager.templates.listed()}
        assert directory.name not in keys
        assert not directory.exists()
        assert not half_made.exists()
        assert driver.record("forked").layers[0] == layer["path"]
        assert Path(layer["path"]).exists()
        for name in ("forked", "suspended"):
            if name == "suspended":
                await driver.resume(name)
            assert driver.tick(name) == 3
    finally:
        await driver.end()


@pytest.mark.parametrize("effects", [2, 20, 40, 60, 75])
async def test_a_driver_killed_while_it_takes_up_the_state_has_a_successor(
    effects: int, tmp_path: Path
) -> None:
    taken_up = TakenUp(tmp_path)
    await taken_up.begin_and_be_killed(effects)
    driver = await taken_up.begin()
    try:
        assert driver.phases() == {
            **dict.fromkeys(RAN, Phase.RUNNING),
            **RESTED,
            **HALF_DONE,
        }
        await taken_up.all_claimed()
        for name in ("suspended", "half-suspended", "half-published"):
            await driver.resume(name)
        for name in (
            *("suspended", "half-suspended", "half-published", "half-loaded"),
            *("half-resumed", "half-returned", "half-snapshot", "half-switched"),
        ):
            assert driver.tick(name) == 3, name
    finally:
        await driver.end()


async def test_extensions_are_told_of_all_that_they_hold(taken_up: TakenUp) -> None:
    driver, outside = taken_up.driver, taken_up.outside
    news = outside.news()
    for name in ("booted", "forked", "resumed", "source", "half-switched"):
        assert f"adopted {name} {{'ticket': 1}}" in news
    assert "reconcile booted address:{'size': 3} port:{'restore': None}" in news
    assert "reconcile resumed address:{'size': 3} port:{'restore': 'resumed'}" in news
    assert "reconcile stopped address:{'size': 3}" in news
    assert "create-failed half-created" in news
    assert "after-delete half-deleted" in news
    assert "deleted half-deleted {'ticket': 1}" in news
    assert "Suspended half-published {'ticket': 1}" in news
    assert "-port owing" in news
    for name in ("half-written", "half-connected", "half-started", "half-claimed"):
        assert f"after-stop {name}" in news
        assert f"Stopped {name} {{'ticket': 1}}" in news
    held = {f"{n}" for n in driver.names() if "stay-phases:follower" in driver.held(n)}
    up = {n for n in held if driver.record(n).phase is Phase.RUNNING}
    taken = {line for line in outside.taken() if not line.startswith("ticket")}
    assert taken == {f"address {n}" for n in held} | {f"port {n}" for n in up}


async def test_after_all_are_deleted_nothing_is_left(taken_up: TakenUp) -> None:
    driver, root = taken_up.driver, taken_up.root
    for name in sorted(driver.names()):
        assert await driver.manager.delete(name, "")
    for template in driver.manager.templates.listed():
        await driver.manager.templates.remove(template.key)
    await driver.end()
    await taken_up.begin()  # which removes what waiting machines were seen by
    await taken_up.all_claimed()
    assert list((root / "sandboxes").iterdir()) == []
    assert list((root / "layers").iterdir()) == []
    assert list((root / "templates").iterdir()) == []
    assert not taken_up.world.domains
    assert not taken_up.world.taps
    assert not taken_up.world.tables
    left = {line for line in taken_up.outside.taken() if not line.startswith("ticket")}
    assert left == set()
    news = taken_up.outside.news()
    for name in ("booted", "suspended", "exited", "refused"):
        assert any(line.startswith(f"deleted {name} ") for line in news)


async def test_after_a_restart_of_the_host_all_that_ran_comes_up_again(
    tmp_path: Path,
) -> None:
    taken_up = TakenUp(tmp_path, rebooted=True)
    driver = await taken_up.begin()
    try:
        for name in driver.names():
            if driver.record(name).intent is Intent.RUNNING and name not in RESTED:
                assert driver.record(name).phase is Phase.RUNNING, name
        for name, tick in {"booted": 3, "resumed": 4, "copy": 4, "claimed": 2}.items():
            assert has_tick(taken_up.disk(name), tick)
        await driver.resume("suspended")
        assert driver.tick("suspended") == 3
        await taken_up.all_claimed()
    finally:
        await driver.end()


async def test_the_state_of_a_composed_driver_is_taken_up(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """The base has all of them but the one whose create it was never asked for, and the one that is gone."""
    EarlierState(tmp_path, only="composed")
    outside = Outside(tmp_path / "outside-composed")
    for name in ("up", "down", "deleting", "creating"):
        base.sandboxes[name] = pb.DriverSandbox(id=name, name=f"name-{name}")
        base.condition(name, "Ready", "True", "Running")
    base.condition("down", "Suspended", "True", "Stopped")
    sandboxes = tmp_path / "composed" / "sandboxes"

    def left() -> set[str]:
        return {path.name for path in sandboxes.iterdir()}

    settings = composed_config(
        base.socket, tmp_path / "c" / "c.sock", tmp_path / "composed"
    )
    async with composed(settings, [Follower(outside)]) as (stub, _):
        await until(lambda: left() == {"up", "down"}, 20)
        assert base.sandboxes.keys() == {"up", "down"}
        assert outside.taken() == {"address up", "port up", "address down"}
        news = outside.news()
        assert "reconcile up address:{'size': 3} port:{'restore': None}" in news
        assert "reconcile down address:{'size': 3}" in news
        for name in ("creating", "preparing"):
            assert f"create-failed {name}" in news
        assert "after-delete deleting" in news
        assert "after-delete owing" not in news, "it had been told so before"
        for name in ("up", "down"):
            await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=name))
        await until(lambda: not left())
    assert outside.taken() == set()
    assert base.sandboxes == {}
