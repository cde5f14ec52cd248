"""lifecycle.ports.host.Images with skopeo, umoci, mke2fs and a real registry."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.oci_layout import Layout, directory, entry, layer
from tests.fakes.proxy import proxied
from tests.fakes.registry import push, registry
from tests.fakes.settings import image_rules
from vmdriver.errors import Exhausted, HostError, InvalidRequest, NotFound, Refused
from vmdriver.host import process
from vmdriver.host.confined.box import Box
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk, CacheLimits, ImageProgress
from vmdriver.oci import files
from vmdriver.oci.cache import Cache
from vmdriver.oci.image_service import ImageService
from vmdriver.oci.policy import ImagePolicy

BIG = os.urandom(300_000)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images: tiny; foreign, of another architecture; several, of more than one; moved, which a
    tag is moved to; wide, of four layers; dear, which is fetched slowly.
    """
    base = tmp_path_factory.mktemp("images")
    found = Layout(base / "layout")
    hello = layer(directory("etc"), entry("etc/hello", "hello\n"))
    config = {
        "Env": ["PATH=/opt/bin:/bin", "GREETING=hi", "bad name=x"],
        "User": "1000:1000",
        "WorkingDir": "/srv",
        "Entrypoint": ["/entry"],
        "Cmd": ["--serve"],
    }
    found.image("tiny", [hello], config=config)
    found.image("foreign", [hello], architecture="s390x")
    found.image("several", [hello], in_index_of=("s390x", "riscv64"))
    found.image("elsewhere", [hello], in_index_of=("s390x", "riscv64", ""))
    found.image("moved", [layer(entry("etc/hello", "moved\n"))])
    parts = [layer(entry(f"part-{n}", BIG[:70_000] + bytes([n]))) for n in range(4)]
    found.image("wide", parts)
    return found.path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as address:
        for tag in ("tiny", "foreign", "wide"):
            push(layout, tag, f"{address}/{tag}:1")
        for tag in ("several", "elsewhere"):
            push(layout, tag, f"{address}/{tag}:1", "--all")
        push(layout, "tiny", f"{address}/team/inner:1")
        yield address


class Store(ImageService):
    """With its directory at hand, and a progress sink."""

    def __init__(self, root: Path, policy: ImagePolicy) -> None:
        self.threads = Threads("images", 4)
        self.root = root
        super().__init__(root, self.threads, policy, numbers=UserNamespace())
        self.told: list[ImageProgress] = []

    async def get(self, reference: str, owner: str = "s1") -> BaseDisk:
        return await self.prepare(reference, owner, self.told.append)

    @property
    def reasons(self) -> list[str]:
        return [progress.reason for progress in self.told]

    def disks(self) -> list[Path]:
        return list((self.root / "disks").glob("*.ext4"))

    def blobs(self) -> list[Path]:
        return list((self.root / "blobs" / "sha256").iterdir())


@pytest.fixture
def policy(address: str, layout: Path) -> ImagePolicy:
    return image_rules((address,), (layout.parent,), refresh_s=0)


@pytest.fixture
async def store(tmp_path: Path, policy: ImagePolicy) -> AsyncIterator[Store]:
    async for found in opened(tmp_path / "store", policy):
        yield found


async def opened(root: Path, policy: ImagePolicy) -> AsyncIterator[Store]:
    store = Store(root, policy)
    await store.open()
    yield store
    await store.close()
    left = list(root.glob(".work-*"))
    assert left == [], "nothing half-made stays"
    store.threads.close()


def content(disk: BaseDisk, path: str) -> str:
    return subprocess.run(
        ["debugfs", "-R", f"cat {path}", disk.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


# --- from a reference to a disk


async def test_an_image_becomes_a_disk_once(store: Store, address: str) -> None:
    first = await store.get(f"{address}/tiny:1")
    assert store.reasons[:2] == ["ResolvingImage", "CacheMiss"]
    assert "PullingLayer" in store.reasons
    pulling = next(p for p in store.told if p.reason == "PullingLayer")
    assert pulling.total_bytes > 0
    assert pulling.detail.startswith("layer 1 of 1, 0.0 of 0.0 MiB")
    store.told.clear()
    assert await store.get(f"{address}/tiny:1") == first
    assert store.reasons == ["ResolvingImage", "CacheHit"]
    assert Path(first.path).stat().st_mode & 0o777 == 0o400
    assert content(first, "/etc/hello") == "hello\n"
    check = subprocess.run(
        ["e2fsck", "-fn", first.path], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout


async def test_what_the_image_says_of_itself_is_known(
    store: Store, address: str
) -> None:
    config = (await store.get(f"{address}/tiny:1")).config
    assert config.environment == {"PATH": "/opt/bin:/bin", "GREETING": "hi"}
    assert (config.user, config.working_directory) == ("1000:1000", "/srv")
    assert (config.entrypoint, config.command) == (("/entry",), ("--serve",))


async def test_a_digest_that_is_here_needs_no_registry(
    tmp_path: Path, layout: Path
) -> None:
    with registry(tmp_path / "registry") as address:
        push(layout, "tiny", f"{address}/tiny:1")
        push(layout, "several", f"{address}/several:1", "--all")
        policy = image_rules((address,), refresh_s=60)
        async for store in opened(tmp_path / "store", policy):
            tiny = await store.get(f"{address}/tiny:1")
            several = await store.get(f"{address}/several:1")
            index = next(
                reference
                for image in await store.known()
                for reference in image.references
                if image.disk.digest == several.digest
                and several.digest not in reference
            )
    async for store in opened(tmp_path / "store", policy):
        assert await store.get(f"{address}/tiny@{tiny.digest}") == tiny
        assert await store.get(index.removeprefix("docker://")) == several
        assert store.reasons == ["CacheHit", "CacheHit"]
        with pytest.raises(HostError):
            await store.get(f"{address}/tiny:1")


async def test_a_tag_is_asked_for_again_after_a_while_only(
    tmp_path: Path, address: str, policy: ImagePolicy, layout: Path
) -> None:
    push(layout, "tiny", f"{address}/moving:1")
    slow = dataclasses.replace(policy, refresh_s=60)
    async for store in opened(tmp_path / "slow", slow):
        first = await store.get(f"{address}/moving:1")
        push(layout, "moved", f"{address}/moving:1")
        store.told.clear()
        assert await store.get(f"{address}/moving:1") == first
        assert store.reasons == ["CacheHit"]
    async for store in opened(tmp_path / "slow", policy):
        assert (
            content(await store.get(f"{address}/moving:1"), "/etc/hello") == "moved\n"
        )


async def test_an_index_gives_the_image_of_this_architecture(
    store: Store, address: str
) -> None:
    disk = await store.get(f"{address}/several:1")
    assert content(disk, "/etc/hello") == "hello\n"
    for name in ("elsewhere", "foreign"):
        with pytest.raises(Refused, match="s390x"):
            await store.get(f"{address}/{name}:1")
    foreign = [p for p in store.told if p.reason == "PullingLayer"]
    assert len({p.total_bytes for p in foreign}) == 1, "only the first was fetched"


async def test_what_does_not_exist_is_not_found(store: Store, address: str) -> None:
    for reference in (
        f"{address}/nothing:1",
        f"{address}/tiny:nothing",
        f"{address}/tiny@sha256:{'0' * 64}",
    ):
        with pytest.raises(NotFound, match=r"template\.image"):
            await store.get(reference)
    assert store.disks() == []


async def test_a_local_layout_is_used_only_where_allowed(
    store: Store, layout: Path, tmp_path: Path
) -> None:
    for tag in ("tiny", "several"):
        assert (
            content(await store.get(f"oci:{layout}:{tag}"), "/etc/hello") == "hello\n"
        )
    for reference in (
        "oci:/etc",
        "oci:relative",
        f"oci:{layout.parent}/../../etc",
        f"oci:{tmp_path}",
    ):
        with pytest.raises(InvalidRequest, match=r"template\.image"):
            await store.get(reference)
    with pytest.raises(NotFound):
        await store.get(f"oci:{layout.parent}/nothing")


async def test_only_what_the_operator_allows_is_used(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    narrow = dataclasses.replace(
        policy, allowed_images=(f"{address}/team", "ghost.test")
    )
    async for store in opened(tmp_path / "narrow", narrow):
        await store.get(f"{address}/team/inner:1")
        for other in (
            f"{address}/tiny:1",
            f"{address}/teams:1",
            "debian",
            "oci.test/x",
        ):
            with pytest.raises(Refused, match="operator allows"):
                await store.get(other)
            with pytest.raises(Refused, match="operator allows"):
                store.check(other)
        store.check(f"{address}/team/not-there:1")
        store.check(f"oci:{policy.allowed_directories[0]}/not-there")
        for bad in ("lower/CASE", "a b", "", "oci:/etc"):
            with pytest.raises(InvalidRequest, match=r"template\.image"):
                store.check(bad)


async def test_short_names_are_looked_for_in_local_stores_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: ImagePolicy, layout: Path
) -> None:
    both = dataclasses.replace(
        policy, local_stores=("docker-daemon", "containers-storage")
    )
    asked: list[str] = []
    genuine = process.run

    async def run(arguments: list[str], **more: object) -> process.Completed:
        names = [a for a in arguments if ":" in a and "/" in a and a[0] not in "-/"]
        asked.extend(n for n in names if not n.startswith("oci:"))
        local = [
            f"oci:{layout}:tiny" if a.startswith("containers-storage:") else a
            for a in arguments
        ]
        box = more["box"]
        assert isinstance(box, Box)
        assert not box.network
        if local != arguments:  # this host has no store of an engine's
            write = tuple(p for p in box.write if "containers" not in p.parts)
            box = dataclasses.replace(box, read=(layout,), write=write)
        return await genuine(local, **{**more, "box": box})  # type: ignore[arg-type]

    monkeypatch.setattr(process, "run", run)
    async for store in opened(tmp_path / "local", both):
        await store.get("built/here:1")
    name = "docker.io/built/here:1"
    assert asked[0] == f"containers-storage:{name}"
    assert not [a for a in asked if a.startswith("docker")]


# --- sharing, cancelling, failing


async def test_eight_requests_share_one_pull_and_all_hear_of_it(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    with proxied(address) as (front, faults):
        faults.bytes_per_s = 60_000
        own = dataclasses.replace(policy, insecure_registries=(front,))
        async for store in opened(tmp_path / "shared", own):
            heard: list[list[ImageProgress]] = [[] for _ in range(8)]
            found = await asyncio.gather(
                *(
                    store.prepare(f"{front}/wide:1", f"s{n}", heard[n].append)
                    for n in range(8)
                )
            )
            assert len({disk.path for disk in found}) == 1
            assert len(store.disks()) == 1
            (made,) = Cache(store.root).entries()
    fetched = [path.rpartition("/")[2] for path in faults.blobs()]
    assert [fetched.count(digest) for digest in made.entry.layers] == [1, 1, 1, 1]
    for told in heard:
        done = [p.done_bytes for p in told if p.reason == "PullingLayer"]
        assert done
        assert done == sorted(done)
        assert "PreparingRootfs" in [p.reason for p in told]


async def test_when_the_last_one_leaves_the_work_ends(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    with proxied(address) as (front, faults):
        faults.bytes_per_s = 50_000
        own = dataclasses.replace(policy, insecure_registries=(front,))
        async for store in opened(tmp_path / "left", own):
            tasks = [
                asyncio.create_task(store.get(f"{front}/wide:1")) for _ in range(2)
            ]
            while "PullingLayer" not in store.reasons:
                await asyncio.sleep(0.01)
            tasks[0].cancel()
            await asyncio.wait({tasks[0]})
            await asyncio.sleep(0.2)
            assert not tasks[1].done(), "one still waits for it"
            tasks[1].cancel()
            await asyncio.wait(tasks)
            assert list(store.root.glob(".work-*")) == []
            faults.bytes_per_s = 0
            await store.get(f"{front}/wide:1")


async def test_a_failure_is_not_kept_and_passing_ones_are_tried_again(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    with proxied(address) as (front, faults):
        own = dataclasses.replace(policy, insecure_registries=(front,))
        async for store in opened(tmp_path / "failing", own):
            faults.fail_with, faults.times = 503, 1
            await store.get(f"{front}/tiny:1")
            faults.fail_with, faults.times = 500, 1000
            with pytest.raises(HostError):
                await store.get(f"{front}/wide:1")
            faults.times = 0
            await store.get(f"{front}/wide:1")


async def test_a_cut_transfer_is_taken_up_with_the_layers_that_are_there(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    with proxied(address) as (front, faults):
        own = dataclasses.replace(policy, insecure_registries=(front,))
        async for store in opened(tmp_path / "cut", own):
            faults.truncate_after, faults.times = 1000, 1
            await store.get(f"{front}/wide:1")
            fetched = faults.blobs()
            assert len(fetched) > len(set(fetched)), "one was fetched again"
            assert len(fetched) <= len(set(fetched)) + 2, "the others were not"


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.fakes.settings import image_rules
from vmdriver.host.threads import Threads
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.oci.image_service import ImageService

async def main():
    root, front = sys.argv[1:]
    service = ImageService(Path(root), Threads("x", 2), image_rules((front,)), numbers=UserNamespace())
    await service.open()
    await service.prepare(f"{front}/wide:1", "s1", lambda p: print(p.reason, flush=True))

asyncio.run(main())
"""


async def test_after_a_kill_finished_layers_are_kept_and_half_made_work_is_not(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    with proxied(address) as (front, faults):
        faults.bytes_per_s = 60_000
        root = tmp_path / "killed"
        command = [sys.executable, "-c", KILLED, str(root), front]
        child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        blobs = root / "blobs" / "sha256"
        deadline = time.monotonic() + 30
        while not blobs.exists() or len(layers_in(blobs)) < 2:
            assert time.monotonic() < deadline
            assert child.poll() is None
            await asyncio.sleep(0.02)
        child.kill()
        child.wait()
        end_strays(str(root))
        kept = layers_in(blobs)
        assert kept
        faults.bytes_per_s = 0
        faults.seen.clear()
        own = dataclasses.replace(policy, insecure_registries=(front,))
        async for store in opened(root, own):
            await store.get(f"{front}/wide:1")
        assert not [path for path in faults.blobs() if path.rpartition(":")[2] in kept]


def layers_in(blobs: Path) -> set[str]:
    """Names of those of "wide" that are there; its config is fetched each time."""
    return {path.name for path in blobs.iterdir() if path.stat().st_size > 10_000}


def end_strays(text: str) -> None:
    """Programs that a killed process of this test had started (each is a session of its own)."""
    for found in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (found / "cmdline").read_bytes():
                os.kill(int(found.name), signal.SIGKILL)
        except OSError:
            continue


async def test_too_little_disk_space_is_said_before_anything_is_fetched(
    tmp_path: Path, address: str, policy: ImagePolicy
) -> None:
    full = dataclasses.replace(policy, free_floor=2**60)
    async for store in opened(tmp_path / "full", full):
        with pytest.raises(Exhausted, match=r"\d+ MiB of disk space are missing"):
            await store.get(f"{address}/tiny:1")
        assert store.blobs() == []


# --- damage


@pytest.mark.parametrize(
    "content",
    [b"damaged", layer(entry("part-0", "a good layer, but not this one" * 3000))],
    ids=["garbage", "another"],
)
async def test_a_damaged_layer_is_fetched_again(
    store: Store, address: str, content: bytes
) -> None:
    disk = await store.get(f"{address}/wide:1")
    for path in (store.root / "disks").iterdir():
        path.unlink()  # the layers stay
    blobs = store.root / "blobs" / "sha256"
    (blobs / min(layers_in(blobs))).write_bytes(content)
    again = await store.get(f"{address}/wide:1")
    assert again.digest == disk.digest
    size = subprocess.run(
        ["debugfs", "-R", "stat /part-0", again.path], capture_output=True, check=True
    ).stdout
    assert b"Size: 70001" in size
    for blob in store.blobs():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


async def test_a_disk_that_was_changed_is_set_aside_and_made_anew(
    store: Store, address: str
) -> None:
    disk = Path((await store.get(f"{address}/tiny:1")).path)
    os.utime(disk)  # touched only
    assert (await store.get(f"{address}/tiny:1")).path == str(disk)
    with disk.open("r+b") as file:
        file.seek(100_000)
        file.write(b"x")
    again = await store.get(f"{address}/tiny:1")
    assert again.path != str(disk)
    assert content(again, "/etc/hello") == "hello\n"
    assert disk.exists(), "a sandbox may still stand on it"
    await collect_all(store, in_use={str(disk)})
    assert disk.exists()
    await collect_all(store)
    assert not disk.exists()


async def test_a_truncated_layer_leaves_nothing(store: Store, layout: Path) -> None:
    broken = layout.parent / "broken"
    subprocess.run(["cp", "-r", layout, broken], check=True)
    index = json.loads((broken / "index.json").read_text())
    blobs = broken / "blobs" / "sha256"
    manifest = json.loads(
        (blobs / index["manifests"][0]["digest"].split(":")[1]).read_text()
    )
    blob = blobs / manifest["layers"][0]["digest"].split(":")[1]
    blob.write_bytes(blob.read_bytes()[:50])
    with pytest.raises(HostError):
        await store.get(f"oci:{broken}:tiny")
    assert store.disks() == []


# --- the cache


async def collect_all(store: Store, in_use: set[str] | None = None) -> list[str]:
    """Everything that may go, as if a day had passed."""
    old = time.time() - 86400
    trees = (store.root / "trees").glob("*/source.json")
    for path in [*(store.root / "disks").iterdir(), *store.blobs(), *trees]:
        if path.suffix != ".ext4":
            os.utime(path, (old, old))
    store.release("s1")
    limits = CacheLimits(most_age_s=1.0)
    chosen = await store.collect(in_use or set(), limits)
    return [item.path for item in chosen]


async def test_what_is_old_goes_and_what_is_used_stays(
    store: Store, address: str
) -> None:
    tiny = await store.get(f"{address}/tiny:1")
    wide = await store.get(f"{address}/wide:1")
    assert await store.collect(set(), CacheLimits(most_age_s=1.0)) == [], (
        "asked for just now"
    )
    dry = await store.collect(set(), CacheLimits(most_bytes=1), dry_run=True)
    assert dry == []
    removed = await collect_all(store, in_use={tiny.path})
    assert wide.path in removed
    assert store.disks() == [Path(tiny.path)]
    assert [image.disk.path for image in await store.known()] == [tiny.path]
    assert await collect_all(store, in_use={tiny.path}) == []


async def test_collecting_during_eight_creates_takes_nothing_that_is_needed(
    tmp_path: Path, address: str, layout: Path, policy: ImagePolicy
) -> None:
    greedy = CacheLimits(most_bytes=1, most_age_s=1e-6)
    async for store in opened(tmp_path / "greedy", policy):
        collecting = asyncio.create_task(keep_collecting(store, greedy))
        names = [f"{address}/{['tiny', 'wide'][n % 2]}:1" for n in range(8)]
        found = await asyncio.gather(
            *(store.get(name, f"s{n}") for n, name in enumerate(names))
        )
        assert not collecting.done()
        collecting.cancel()
        assert all(Path(disk.path).exists() for disk in found)


async def keep_collecting(store: Store, limits: CacheLimits) -> None:
    while True:
        await store.collect(set(), limits)
        await asyncio.sleep(0.01)


async def test_an_entry_that_is_being_written_is_nobodys_business(
    store: Store, address: str
) -> None:
    disk = Path((await store.get(f"{address}/tiny:1")).path)
    meta = disk.with_suffix(".json").read_bytes()
    saved = Cache(store.root).entries()[0].entry
    genuine = Path.rename

    def slow(self: Path, target: Path) -> Path:
        if self.parent == disk.parent:
            self.write_bytes(meta[:20])  # as far as it is written
            assert len(Cache(store.root).entries()) == 1
            assert self.exists()
            self.write_bytes(meta)
        return genuine(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", slow)
        Cache(store.root).save(saved)
    assert Cache(store.root).entries()[0].entry == saved


async def test_a_disk_that_is_made_counts_where_there_is_no_room_to_put_its_tree_aside(
    store: Store, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is published by then: the create had failed, of an image that was there."""
    genuine = tempfile.mkdtemp

    def full(*arguments: Any, **more: Any) -> str:
        if store.disks():
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(*arguments, **more)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    disk = await store.get(f"{address}/tiny:1")
    assert content(disk, "/etc/hello") == "hello\n"
    assert list(store.root.glob(".work-*")) == []


@pytest.mark.parametrize("at", ["sync", "publish", "remove_tree"])
async def test_a_kill_while_a_disk_is_published_leaves_a_whole_one_or_none(
    tmp_path: Path, policy: ImagePolicy, address: str, at: str
) -> None:
    """As it is on disk, with all that this process did afterwards taken back."""
    image, seen = f"{address}/tiny:1", tmp_path / "seen"
    genuine = getattr(files, at)

    def photographed(path: Path, *more: Any, **named: Any) -> None:
        if not seen.exists() and (at != "remove_tree" or "tree" in os.listdir(path)):
            # What is removed meanwhile need not be in it.
            copy = ["cp", "-a", str(tmp_path / "store"), str(seen)]
            subprocess.run(copy, stderr=subprocess.DEVNULL, check=False)
        genuine(path, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, at, photographed)
        async for store in opened(tmp_path / "store", policy):
            await store.get(image)
    assert list(seen.glob(".work-*"))
    shutil.rmtree(tmp_path / "store")
    seen.rename(tmp_path / "store")
    async for store in opened(tmp_path / "store", policy):
        assert content(await store.get(image), "/etc/hello") == "hello\n"
        assert ("CacheHit" in store.reasons) == (at == "remove_tree")
        assert len(store.disks()) == 1


async def test_half_made_work_of_a_killed_process_is_removed(store: Store) -> None:
    (store.root / ".work-killed").mkdir()
    (store.root / ".work-killed" / "disk").write_text("half")
    (store.root / "layout").mkdir()  # an older version's
    await store.open()
    assert not (store.root / ".work-killed").exists()
    assert not (store.root / "layout").exists()


# --- as a directory


async def test_an_image_as_a_directory_is_fetched_once_and_outlives_its_registry(
    tmp_path: Path, layout: Path
) -> None:
    with registry(tmp_path / "registry") as address:
        push(layout, "tiny", f"{address}/sup:1")
        policy = image_rules((address,), refresh_s=0)
        async for store in opened(tmp_path / "store", policy):
            first = await store.tree(
                f"{address}/sup:1", "supervisor", store.told.append
            )
            assert (first[0] / "etc" / "hello").read_text() == "hello\n"
            store.told.clear()
            assert await store.tree(f"{address}/sup:1", "x", store.told.append) == first
            assert store.told == [], "it was there"
        push(layout, "moved", f"{address}/sup:1")
        async for store in opened(tmp_path / "store", policy):
            other = await store.tree(
                f"{address}/sup:1", "supervisor", store.told.append
            )
            assert (other[0] / "etc" / "hello").read_text() == "moved\n"
            old = await store.tree(f"{address}/sup@{first[1]}", "x", store.told.append)
            assert old == first
            await collect_all(store)
            assert first[0].exists(), "both are kept"
            store.release("x")
            assert str(first[0].parent) in await collect_all(store)
            assert other[0].exists()
    async for store in opened(tmp_path / "store", policy):
        last = await store.tree(f"{address}/sup:1", "supervisor", store.told.append)
        assert last == other, "the registry is away"
        with pytest.raises(HostError):
            await store.tree(f"{address}/other:1", "supervisor", store.told.append)
