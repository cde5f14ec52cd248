"""Layers in zstd, with zstd, umoci and mke2fs: good ones, and ones that are made to do harm."""

from __future__ import annotations

import gzip
import os
import random
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.oci_layout import GZIP, ZSTD, Layout, directory, entry, layer, zstd
from tests.fakes.registry import push, registry
from tests.fakes.settings import image_rules
from vmdriver.errors import ImageError, Refused
from vmdriver.host import process
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk
from vmdriver.oci import files
from vmdriver.oci.boxes import ImageBoxes
from vmdriver.oci.image_service import ImageService

MIB = 2**20
SKIPPED = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
"""A frame that is skipped: RFC 8878, 3.1.2."""


class Bench:
    """Makes images in a layout, and disks of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        policy = image_rules(
            allowed_directories=(root,),
            max_content=64 * MIB,
            max_files=1000,
            refresh_s=0,
        )
        self.layout = Layout(root / "layout")
        self.threads = Threads("images", 4)
        self.store = ImageService(
            root / "store", self.threads, policy, numbers=UserNamespace()
        )

    async def disk(self, *layers: bytes, media_type: str = ZSTD) -> BaseDisk:
        self.layout.image("it", layers, media_type=media_type)
        return await self.made()

    async def made(self) -> BaseDisk:
        try:
            return await self.store.prepare(
                f"oci:{self.layout.path}:it", "s1", lambda _progress: None
            )
        finally:
            await self.store.close()
            assert not list((self.root / "store").glob(".work-*"))

    async def refused(self, *layers: bytes) -> str:
        with pytest.raises(Refused) as caught:
            await self.disk(*layers)
        assert not list((self.root / "store" / "disks").iterdir()), "nothing is kept"
        return str(caught.value)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.store.open()
    yield bench
    bench.threads.close()


def content(disk: BaseDisk, path: str) -> bytes:
    return subprocess.run(
        ["debugfs", "-R", f"cat {path}", disk.path], capture_output=True, check=True
    ).stdout


def archive(name: str, text: str | bytes) -> bytes:
    return layer(entry(name, text), zipped=False)


async def test_layers_of_every_kind_lie_on_each_other(bench: Bench) -> None:
    lower = layer(directory("etc"), entry("etc/a", "lower"), entry("etc/gone", "x"))
    middle = zstd(archive("etc/a", "middle"))
    upper = zstd(layer(entry("etc/.wh.gone"), entry("etc/b", "upper"), zipped=False))
    disk = await bench.disk(lower, middle, upper, middle, media_type=GZIP)
    assert content(disk, "/etc/a") == b"middle"
    assert content(disk, "/etc/b") == b"upper"
    assert content(disk, "/etc/gone") == b""


async def test_a_layer_may_have_several_frames_and_some_to_be_skipped(
    bench: Bench,
) -> None:
    whole = archive("a", b"x" * 5000)
    parts = zstd(whole[:3000]) + SKIPPED + zstd(whole[3000:]) + SKIPPED
    assert content(await bench.disk(parts), "/a") == b"x" * 5000


async def test_a_layer_that_is_gzip_in_truth_has_the_content_that_it_should(
    bench: Bench,
) -> None:
    assert content(await bench.disk(gzip.compress(archive("a", "1"))), "/a") == b"1"


async def test_an_image_with_them_comes_from_a_registry_and_its_layers_are_kept(
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path / "layout")
    one, two = zstd(archive("one", "1")), zstd(archive("two", "2"))
    layout.image("it", [one, two])
    threads = Threads("images", 4)
    with registry(tmp_path / "registry") as address:
        push(layout.path, "it", f"{address}/it:1")
        policy = image_rules((address,))
        store = ImageService(
            tmp_path / "store", threads, policy, numbers=UserNamespace()
        )
        await store.open()
        disk = await store.prepare(f"{address}/it:1", "s1", lambda _p: None)
        assert content(disk, "/two") == b"2"
        blobs = list((tmp_path / "store" / "blobs" / "sha256").iterdir())
        assert sorted(path.read_bytes() for path in blobs) == sorted([one, two])

        # One that is damaged by now is fetched again.
        for path in (tmp_path / "store" / "disks").iterdir():
            path.unlink()
        next(path for path in blobs if path.read_bytes() == two).write_bytes(one)
        disk = await store.prepare(f"{address}/it:1", "s2", lambda _p: None)
        assert content(disk, "/two") == b"2"
        await store.close()
    threads.close()


def random_bytes(size: int) -> bytes:
    return random.Random(1).randbytes(size)


@pytest.mark.parametrize(
    "bad",
    [
        b"no zstd at all, but long enough to be some" * 40,
        zstd(archive("a", random_bytes(50_000)))[:-1000],
        zstd(archive("a", random_bytes(50_000)), "--check")[:-4] + b"sums",
        zstd(b"no archive" * 1000),
        zstd(archive("a", random_bytes(5000))[:3000]),
        b"",
        zstd(archive("a", "1")) + b"behind it",
        zstd(archive("a", "1")) + zstd(b"behind it")[:-3],
        SKIPPED * 3,
    ],
    ids=[
        *("garbage", "cut", "sum", "no-tar", "cut-tar", "empty"),
        *("behind", "second-cut", "nothing-in-it"),
    ],
)
async def test_a_layer_that_is_not_what_it_says_is_refused_by_number(
    bad: bytes, bench: Bench
) -> None:
    text = await bench.refused(zstd(archive("a", "1")), bad)
    assert "layer 2 of 2" in text


@pytest.mark.parametrize("kind", ["zeros", "many frames", "behind the archive"])
async def test_a_bomb_fills_no_disk(kind: str, bench: Bench) -> None:
    some = zstd(bytes(16 * MIB))
    bombs = {
        "zeros": zstd(archive("zeros", bytes(100 * MIB))),
        "many frames": some * 20,
        "behind the archive": zstd(archive("a", "1")) + some * 20,
    }
    text = await bench.refused(zstd(archive("a", "1")), bombs[kind])
    assert "layer 2 of 2" in text


async def test_all_layers_together_stay_within_the_limit(bench: Bench) -> None:
    parts = [zstd(archive(f"f{n}", bytes(30 * MIB))) for n in range(3)]
    assert "layer 3 of 3" in await bench.refused(*parts)


async def test_a_layer_that_takes_too_much_memory_is_refused(bench: Bench) -> None:
    wide = zstd(archive("a", bytes(MIB)), "--ultra", "--long=31", "--no-progress")
    # The size of the window, in the frame's header, is that of its content: say more.
    forged = bytearray(wide)
    forged[4], forged[5:5] = 0x04, bytes([0xF8])
    assert "layer 1 of 1" in await bench.refused(bytes(forged))


async def test_a_layer_with_other_content_than_the_configuration_says_is_not_used(
    bench: Bench,
) -> None:
    good = archive("a", "1")
    bench.layout.image("it", [zstd(good)], diffs=["sha256:" + "0" * 64])
    with pytest.raises(ImageError):
        await bench.made()


async def test_what_decompresses_sees_one_layer_and_writes_one_folder(
    tmp_path: Path,
) -> None:
    numbers = UserNamespace()
    (tmp_path / "layer").write_text("layer")
    (tmp_path / "beside").write_text("secret")
    place = tmp_path / "place"
    place.mkdir()
    box = await ImageBoxes(image_rules(), numbers).decompressing(
        tmp_path / "layer", place, MIB
    )
    script = (
        f"cat {tmp_path}/layer; echo; ls {tmp_path}; cut -d: -sf1 /proc/net/dev; id -u"
    )
    done = await process.run(
        ["sh", "-c", f"{script} 2>/dev/null; true"], deadline_s=30, box=box
    )
    assert done.stdout.split() == [b"layer", b"layer", b"place", b"lo", b"0"]
    numbers.close()


def test_a_file_is_put_over_a_link_not_through_it(tmp_path: Path) -> None:
    secret, index = tmp_path / "secret", tmp_path / "index.json"
    secret.write_text("root's")
    index.symlink_to(secret)
    files.replace(index, b"new")
    assert (secret.read_text(), index.read_text()) == ("root's", "new")
    assert stat.S_IMODE(os.lstat(index).st_mode) == 0o444
