"""A checkpoint has its name when all of it is on disk, and not before; a used one has none."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_plan_rendering import plan
from vmdriver.errors import NotFound, StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.model.checkpoint import MemoryManifest, Part, Versions
from vmdriver.model.record import utc_now
from vmdriver.storage import files
from vmdriver.storage.checkpoints import Checkpoints


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Checkpoints]:
    threads = Threads("test", 2)
    yield Checkpoints(threads, Ownership(os.getuid(), os.getgid()))
    threads.close()


@pytest.fixture
def part(tmp_path: Path) -> str:
    return str(tmp_path / "s1" / "capture.part")


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "s1").mkdir()
    return str(tmp_path / "s1" / "suspended")


async def written(store: Checkpoints, part: str) -> tuple[Part, ...]:
    Path(await store.begin(part, 1)).write_bytes(b"memory")
    captured = Captured(b"state", "<domain/>", 3, "pc-q35-7.2", "<cpu/>")
    return await store.write_parts(part, captured)


def manifest(parts: tuple[Part, ...]) -> MemoryManifest:
    return MemoryManifest(
        kind="suspended",
        sandbox_id="s1",
        workspace="",
        created_at=utc_now(),
        host_boot_id="",
        plan=plan(),
        versions=Versions(hypervisor="7", libvirt="9", machine="pc-q35-7.2"),
        cpu="<cpu/>",
        boot_digest="",
        supervisor_digest="",
        files=(),
        parts=parts,
    )


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made durable and what is renamed, in order."""
    found: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        found.append(f"sync {Path(path).name}")
        fsync(descriptor)

    def renamed(source: Any, destination: Any, **options: Any) -> None:
        found.append(f"rename {Path(source).name} {Path(destination).name}")
        rename(source, destination, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    return found


async def test_all_of_a_checkpoint_is_durable_before_it_has_its_name(
    store: Checkpoints, part: str, target: str, trace: list[str]
) -> None:
    parts = await written(store, part)
    assert {"sync memory", "sync state", "sync domain.xml"} <= set(trace)
    del trace[:]
    await store.publish(part, target, manifest(parts))
    assert trace == [
        "sync .manifest.json.part",
        "sync capture.part",
        "rename capture.part suspended",
        "sync s1",
    ]


STEPS: dict[str, tuple[Any, str, int]] = {
    "before": (files, "remove_tree", 0),
    "manifest": (files, "replace", 0),
    "name": (Path, "rename", 0),
    "durable name": (files, "sync_directory", 1),
}
"""Whose function it is, and which of its calls, from 0."""


@pytest.fixture(params=[False, True], ids=["before it", "after it"])
def fail(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, BaseException], None]:
    """Have one step raise, with or without its effect."""

    def arm(step: str, error: BaseException) -> None:
        owner, name, at = STEPS[step]
        real, calls = getattr(owner, name), itertools.count()

        def call(*arguments: Any) -> None:
            chosen = next(calls) == at
            if not chosen or request.param:
                real(*arguments)
            if chosen:
                raise error

        monkeypatch.setattr(owner, name, call)

    return arm


@pytest.mark.parametrize("step", STEPS)
async def test_a_driver_killed_while_it_publishes_leaves_a_whole_checkpoint_or_none(
    step: str,
    store: Checkpoints,
    part: str,
    target: str,
    fail: Callable[[str, BaseException], None],
) -> None:
    parts = await written(store, part)
    fail(step, Killed())
    with pytest.raises(Killed):
        Checkpoints._publish(Path(part), Path(target), manifest(parts))
    if not Path(target).exists():
        assert step != "durable name"
        return
    found, _ = await store.read(target)
    assert await store.damage(target, found.parts) == []


@pytest.mark.parametrize("step", STEPS)
async def test_a_checkpoint_that_could_not_be_published_is_none(
    step: str,
    store: Checkpoints,
    part: str,
    target: str,
    fail: Callable[[str, BaseException], None],
) -> None:
    """Its machine goes on; not even its name may be left, nor its memory take space."""
    parts = await written(store, part)
    fail(step, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError):
        await store.publish(part, target, manifest(parts))
    with pytest.raises(NotFound):
        await store.read(target)
    await store.remove(part)
    assert list(Path(target).parent.iterdir()) == []


async def test_a_used_checkpoint_is_none_where_it_lies_from_then_on(
    store: Checkpoints, part: str, target: str, tmp_path: Path
) -> None:
    await store.publish(part, target, manifest(await written(store, part)))
    mapped = str(tmp_path / "s1" / "mapped")
    for _ in range(2):
        await store.retire(target, mapped)
    for directory in (target, mapped):
        with pytest.raises(NotFound):
            await store.read(directory)
    assert Path(mapped, "memory").read_bytes() == b"memory", "a machine maps it"
