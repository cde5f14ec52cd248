"""Whose a number is, on disk and in /proc: one suite for the fake and the real thing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.fakes.machine_users import FakeMachineUsers
from tests.fakes.world import World
from vmdriver.errors import Unavailable
from vmdriver.host.threads import Threads
from vmdriver.host.users import access_list, ownership
from vmdriver.lifecycle.ports.host import MachineUsers as Port
from vmdriver.model.phase import DomainState
from vmdriver.storage.layers.machine_users import MachineUsers
from vmdriver.storage.layout import Layout

NUMBER = 3_000_000_000 + 10 * os.getpid()
"""Not those of a run beside this one: processes are looked for on the whole host."""
OTHER, HELD, ASIDE = NUMBER + 1, NUMBER + 2, NUMBER + 3


class Side(Protocol):
    users: Port

    def leave_layer(self, number: int, name: str) -> object: ...

    def remove_layer(self, name: str) -> object: ...

    def leave_small_file(self, number: int, owner: str) -> object: ...

    def owned(self) -> set[int]: ...

    def running(self, number: int) -> AbstractContextManager[None]: ...


class InMemory:
    def __init__(self) -> None:
        self.world = World()
        self.users: Port = FakeMachineUsers(self.world)

    def leave_layer(self, number: int, name: str) -> None:
        path = f"layers/{name}.qcow2"
        self.world.files.add(path)
        self.world.file_users[path] = number

    def remove_layer(self, name: str) -> None:
        self.world.files.discard(f"layers/{name}.qcow2")
        self.world.file_users.pop(f"layers/{name}.qcow2")

    def leave_small_file(self, number: int, owner: str) -> None:
        self.world.file_users[f"{owner}/seed.img"] = number

    def owned(self) -> set[int]:
        return set(self.world.file_users.values())

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        self.world.domains["d"] = DomainState.RUNNING
        self.world.machine_users["d"] = number
        yield
        del self.world.domains["d"]


class OnDisk:
    def __init__(self, layout: Layout, threads: Threads) -> None:
        self.layout = layout
        self.users: Port = MachineUsers(layout, threads)

    def leave_layer(self, number: int, name: str) -> None:
        path = self.layout.layers / str(number) / f"{name}.qcow2"
        path.touch()
        ownership.own(path, number)

    def remove_layer(self, name: str) -> None:
        next(self.layout.layers.glob(f"*/{name}.qcow2")).unlink()

    def leave_small_file(self, number: int, owner: str) -> None:
        folder = self.layout.sandboxes / owner
        folder.mkdir()
        (folder / "seed.img").touch()
        ownership.own(folder / "seed.img", number, 0o400)

    def owned(self) -> set[int]:
        return {path.lstat().st_uid for path in self.layout.root.rglob("*")} - {0}

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        # Not this Python, which may be in a folder that is closed to that user.
        sleeper = ["sh", "-c", "echo; read line"]
        pipe = subprocess.PIPE
        with subprocess.Popen(sleeper, user=number, stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it runs as that user by now
            yield
            process.kill()


@pytest.fixture(params=["fake", "real"])
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    if request.param == "fake":
        yield InMemory()
        return
    layout, threads = Layout(tmp_path / "state"), Threads("contract", 2)
    layout.make()
    yield OnDisk(layout, threads)
    threads.close()


async def test_a_number_without_anything_can_be_claimed_and_claimed_again(
    side: Side,
) -> None:
    for _ in range(2):
        assert await side.users.claim(NUMBER)
    assert await side.users.is_idle(NUMBER)
    for _ in range(2):
        await side.users.clear(NUMBER, "s1")
    assert await side.users.claim(NUMBER)


async def test_it_is_nobodys_again_while_a_layer_of_its_former_owner_is_left(
    side: Side,
) -> None:
    """Another sandbox was made from its snapshot, and stands on it."""
    assert await side.users.claim(NUMBER)
    side.leave_layer(NUMBER, "s1.00000001")
    await side.users.clear(NUMBER, "s1")
    assert not await side.users.claim(NUMBER)
    assert await side.users.claim(OTHER)
    side.remove_layer("s1.00000001")
    assert await side.users.claim(NUMBER)


async def test_nothing_belongs_to_it_when_it_is_cleared(side: Side) -> None:
    assert await side.users.claim(NUMBER)
    side.leave_small_file(NUMBER, "s1")
    assert NUMBER in side.owned()
    for _ in range(2):
        await side.users.clear(NUMBER, "s1")
    assert NUMBER not in side.owned()
    assert await side.users.claim(NUMBER)


async def test_a_process_that_could_not_be_ended_keeps_its_number(side: Side) -> None:
    assert await side.users.claim(NUMBER)
    side.leave_layer(NUMBER, "s1.00000001")
    with side.running(NUMBER):
        assert not await side.users.is_idle(NUMBER)
        with pytest.raises(Unavailable):
            await side.users.clear(NUMBER, "s1")
        assert NUMBER in side.owned(), "it may be writing"
        side.remove_layer("s1.00000001")
        assert not await side.users.claim(NUMBER)
        assert await side.users.claim(OTHER)
    assert await side.users.is_idle(NUMBER)
    assert await side.users.claim(NUMBER)


async def test_what_a_killed_driver_left_is_found(side: Side) -> None:
    for number in (NUMBER, OTHER, HELD):
        assert await side.users.claim(number)
    side.leave_layer(NUMBER, "warm-1.00000001")
    side.leave_small_file(OTHER, "s1")
    assert await side.users.collect({HELD}, all_known=True) >= {NUMBER, OTHER}
    side.remove_layer("warm-1.00000001")
    found = await side.users.collect({HELD}, all_known=True)
    assert NUMBER not in found
    assert HELD not in found, "it is held"


async def test_a_claim_is_kept_while_a_sandbox_that_cannot_be_read_may_have_it(
    side: Side,
) -> None:
    assert await side.users.claim(NUMBER)
    assert NUMBER in await side.users.collect(set(), all_known=False)
    assert NUMBER not in await side.users.collect(set(), all_known=True)


async def test_a_number_is_found_wherever_it_has_a_right(tmp_path: Path) -> None:
    """In a folder that was moved aside, in the access list of another's layer."""
    layout, threads = Layout(tmp_path / "state"), Threads("contract", 2)
    layout.make()
    users = MachineUsers(layout, threads)
    assert await users.claim(OTHER)
    layer = layout.layers / str(OTHER) / "s.00000001.qcow2"
    layer.touch()
    ownership.take(layer, {OTHER, NUMBER})
    aside = layout.root / "set-aside" / "s" / "deep"
    aside.mkdir(parents=True)
    (aside / "console.log").touch()
    os.chown(aside / "console.log", ASIDE, -1)
    found = await users.collect({OTHER}, all_known=True)
    assert found >= {NUMBER, ASIDE}
    await users.clear(NUMBER, "s1")
    assert access_list.users(layer) == {OTHER}, "the layer's own machine stays"
    assert NUMBER not in await users.collect({OTHER}, all_known=True)
    threads.close()


async def test_a_file_in_the_place_of_a_claim_makes_its_number_nobodys(
    tmp_path: Path,
) -> None:
    layout, threads = Layout(tmp_path / "state"), Threads("contract", 2)
    layout.make()
    (layout.layers / str(NUMBER)).write_text("in the way")
    users = MachineUsers(layout, threads)
    assert not await users.claim(NUMBER)
    assert NUMBER in await users.collect(set(), all_known=True)
    assert (layout.layers / str(NUMBER)).read_text() == "in the way"
    threads.close()
