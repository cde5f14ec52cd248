"""Images that are made to do harm, each with a layer written by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.oci_layout import PLAIN, Layout, directory, entry, layer, link
from tests.fakes.settings import image_rules
from vmdriver.errors import DriverError, Exhausted, HostError, ImageError, Refused
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk
from vmdriver.oci import manifest, scan
from vmdriver.oci.cache import Cache
from vmdriver.oci.image_service import ImageService
from vmdriver.oci.policy import ImagePolicy


class Bench:
    """A place to make images and disks of them. Whatever is written beside it is noticed."""

    def __init__(self, root: Path, policy: ImagePolicy) -> None:
        self.root, self.policy = root, policy
        self.outside = root / "outside"
        self.outside.mkdir()
        (self.outside / "precious").write_text("untouched")
        self.layout = Layout(root / "layout")
        self.threads = Threads("images", 4)
        self.store = ImageService(
            root / "store", self.threads, policy, numbers=UserNamespace()
        )

    async def disk(self, *layers: bytes, **more: Any) -> BaseDisk:
        self.layout.image("it", layers, **more)
        try:
            return await self.store.prepare(
                f"oci:{self.layout.path}:it", "s1", lambda _progress: None
            )
        finally:
            assert (self.outside / "precious").read_text() == "untouched"
            assert sorted(p.name for p in self.outside.iterdir()) == ["precious"]
            await self.store.close()
            assert not list((self.root / "store").glob(".work-*"))

    async def refused(self, *layers: bytes, **more: Any) -> str:
        with pytest.raises((Refused, Exhausted, HostError)) as caught:
            await self.disk(*layers, **more)
        assert not list((self.root / "store" / "disks").iterdir()), "nothing is kept"
        return str(caught.value)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    policy = image_rules(
        allowed_directories=(tmp_path,),
        max_content=64 * 2**20,
        max_files=20_000,
        refresh_s=0,
    )
    bench = Bench(tmp_path, policy)
    await bench.store.open()
    yield bench
    bench.threads.close()


def look(disk: BaseDisk, request: str) -> bytes:
    """What debugfs says of the disk."""
    return subprocess.run(
        ["debugfs", "-R", request, disk.path], capture_output=True, check=True
    ).stdout


def names(disk: BaseDisk, path: str) -> set[bytes]:
    lines = look(disk, f"ls -p {path}").splitlines()
    found = {line.split(b"/")[5] for line in lines if line.count(b"/") > 5}
    return found - {b".", b"..", b"lost+found"}


async def test_whiteouts_remove_what_lower_layers_have_and_nothing_else(
    bench: Bench,
) -> None:
    lower = layer(
        directory("etc"),
        entry("etc/gone", "1"),
        entry("etc/kept", "2"),
        directory("tree"),
        entry("tree/old", "3"),
    )
    upper = layer(
        entry("etc/.wh.gone"),
        entry("tree/.wh..wh..opq"),
        entry("tree/new", "4"),
        entry(".wh.never-there"),
    )
    disk = await bench.disk(lower, upper)
    assert names(disk, "/etc") == {b"kept"}
    assert names(disk, "/tree") == {b"new"}


@pytest.mark.parametrize(
    "name", ["../outside/evil", "a/../../outside/evil", "/outside/evil"]
)
async def test_a_name_cannot_lead_outside(bench: Bench, name: str) -> None:
    try:
        disk = await bench.disk(layer(entry(name, "evil")))
    except DriverError:
        return
    assert b"evil" in look(disk, "cat /outside/evil")


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("target", ["{outside}", "../../outside", "/proc/self/root"])
async def test_a_link_cannot_be_written_through(
    bench: Bench, target: str, hard: bool
) -> None:
    to = target.format(outside=bench.outside)
    first = layer(link("way", to + ("/precious" if hard else ""), hard=hard))
    second = layer(entry("way/precious", "evil") if not hard else entry("way", "evil"))
    with_whiteout = layer(entry("way/.wh.precious"))
    for layers in ((first, second), (first, with_whiteout)):
        try:
            await bench.disk(*layers)
        except DriverError:
            continue


async def test_a_link_as_the_root_is_refused_naming_the_layer(bench: Bench) -> None:
    good = layer(entry("a", "1"))
    text = await bench.refused(good, layer(link(".", str(bench.outside))))
    assert "layer 2 of 2" in text or "cannot be turned into a disk" in text


async def test_device_nodes_do_not_reach_the_disk_and_other_kinds_do(
    bench: Bench,
) -> None:
    disk = await bench.disk(
        layer(
            directory("dev"),
            entry(
                "dev/vda", kind=tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666
            ),
            entry("dev/mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1, mode=0o666),
            entry("pipe", kind=tarfile.FIFOTYPE),
            entry("bin", "#!", mode=0o4755, uid=0),
            entry("kept", "x", uid=1234, gid=4321),
        )
    )
    assert names(disk, "/dev") == set()
    assert names(disk, "/") == {b"dev", b"pipe", b"bin", b"kept"}
    assert b"Mode:  04755" in look(disk, "stat /bin")
    owner = look(disk, "stat /kept")
    assert b"User:  1234" in owner
    assert b"Group:  4321" in owner


async def test_hard_links_and_extended_attributes_survive(bench: Bench) -> None:
    attributes = {"SCHILY.xattr.user.note": "kept"}
    disk = await bench.disk(
        layer(
            entry("one", "same", pax_headers=attributes), link("two", "one", hard=True)
        )
    )
    stat = look(disk, "stat /two")
    assert b"Links: 2" in stat
    assert b"kept" in look(disk, "ea_get /one user.note")


async def test_names_that_are_not_utf8_are_kept_as_they_are(bench: Bench) -> None:
    raw = b"caf\xe9-\xff"
    name = os.fsdecode(raw)
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as archive:
        entry(name, "x")(archive)
    disk = await bench.disk(gzip.compress(buffer.getvalue()))
    assert raw in look(disk, "ls -p /")


def sparse(name: str, size: int) -> bytes:
    """A GNU sparse file of nothing but a hole."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398] = f"{size:011o}".encode() + b" "  # first chunk: at the end, empty
    block[398:410] = f"{0:011o}".encode() + b" "
    block[483:495] = f"{size:011o}".encode() + b" "  # its real size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    return gzip.compress(bytes(block) + bytes(1024))


async def test_a_file_that_claims_to_be_huge_is_refused_naming_its_layer(
    bench: Bench,
) -> None:
    text = await bench.refused(layer(entry("a", "1")), sparse("hole", 10 * 2**30))
    assert "layer 2 of 2" in text
    assert "64 MiB" in text


async def test_a_bomb_within_the_operators_limit_is_refused_too(tmp_path: Path) -> None:
    wide = image_rules(allowed_directories=(tmp_path,), max_content=2**40)
    bench = Bench(tmp_path, wide)
    await bench.store.open()
    text = await bench.refused(sparse("hole", 10 * 2**30))
    assert "claim to be" in text
    bench.threads.close()


async def test_a_header_that_fills_the_memory_is_refused(bench: Bench) -> None:
    size = 700 * 2**20
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, size
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    parts = [packer.compress(info.tobuf(tarfile.USTAR_FORMAT))]
    parts += [packer.compress(bytes(2**20)) for _ in range(700)]
    text = await bench.refused(
        layer(entry("a", "1")), b"".join([*parts, packer.flush()])
    )
    assert "layer 2 of 2" in text
    assert "header" in text


def header(name: str, size: bytes, content: bytes = b"") -> bytes:
    """Of a plain file, with what its field for the size holds, and the content behind it."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    return bytes(block) + content + bytes(-len(content) % 512)


def record(name: str, value: str) -> bytes:
    """A PAX header with one record."""
    text = f" {name}={value}\n"
    size = len(text)
    while len(str(size)) + len(text) != size:
        size = len(str(size)) + len(text)
    packed = f"{size}{text}".encode()
    block = bytearray(header("pax", f"{len(packed):011o}\0".encode(), packed))
    block[156:157] = b"x"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block[:512]):06o}".encode() + b"\0 "
    return bytes(block)


_HIDING = [
    header("first", b"\0" + f"{1024:010o}\0".encode(), bytes(1024)),
    header("first", f"{1024:010o}\0\1".encode(), bytes(1024)),
    header("first", b"+0000000000\0"),
    header("first", b"0o000000000\0"),
    header("first", b"\xff" * 12),
    header("first", b"\x80" + bytes(3) + b"\x80" + bytes(7)),
    header("first", f"{3:011o}\0".encode(), b"abc") + bytes(512),
    record("size", " 1024") + header("first", f"{0:011o}\0".encode(), bytes(1024)),
    record("size", "1_024") + header("first", f"{0:011o}\0".encode(), bytes(1024)),
    record("size", "1024") + header("first", f"{0:011o}\0".encode(), bytes(1024)),
]
"""Archives that begin so go on for some readers, and end for others."""


@pytest.mark.parametrize("number", range(len(_HIDING)))
async def test_no_file_is_hidden_from_the_count(number: int, tmp_path: Path) -> None:
    policy = image_rules(allowed_directories=(tmp_path,), max_files=100)
    bench = Bench(tmp_path, policy)
    await bench.store.open()
    files = b"".join(header(f"h/{n}", b"00000000000\0") for n in range(150))
    text = await bench.refused(gzip.compress(_HIDING[number] + files + bytes(1024)))
    bench.threads.close()
    assert "layer 1 of 1" in text


async def test_folders_that_are_only_named_on_the_way_are_counted(
    bench: Bench,
) -> None:
    deep = layer(*(entry(f"{n}/" + "d/" * 200 + "f") for n in range(200)))
    assert "more than 20000 files" in await bench.refused(deep)


async def test_headers_without_a_file_are_not_read_without_end(bench: Bench) -> None:
    flood = record("comment", "x") * 100_000
    text = await bench.refused(gzip.compress(flood + header("a", b"00000000000\0")))
    assert "layer 1 of 1" in text
    assert "header" in text


async def test_what_is_there_counts_whatever_the_scan_saw(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = bench.root / "blind.py"
    blind.write_text('print(\'{"content": 0, "files": 0, "devices": []}\')')
    monkeypatch.setattr(scan, "__file__", str(blind))
    assert "than its layers say" in await bench.refused(
        layer(*(entry(f"d{n // 500}/{n}") for n in range(20_001)))
    )


async def test_a_pipe_in_a_local_layout_holds_nobody_up(bench: Bench) -> None:
    bench.layout.image("it", [layer(entry("a", "1"))], in_index_of=("s390x",))
    for path in (bench.layout.path / "blobs" / "sha256").iterdir():
        content = path.read_bytes()
        if content.startswith(b"{") and b'"layers": [' in content:
            path.unlink()
            os.mkfifo(path)
    async with asyncio.timeout(60):
        with pytest.raises(ImageError, match="does not hold the image"):
            await bench.store.prepare(
                f"oci:{bench.layout.path}:it", "s1", lambda _progress: None
            )


async def test_more_content_than_allowed_is_refused(bench: Bench) -> None:
    zeros = layer(entry("zeros", bytes(40 * 2**20)))
    more = layer(entry("more", bytes(40 * 2**20)))
    assert "layer 2 of 2" in await bench.refused(zeros, more)


def many(count: int) -> bytes:
    return layer(*(entry(f"d{number // 500}/{number}") for number in range(count)))


async def test_a_hundred_thousand_files_are_counted_before_they_are_made(
    bench: Bench,
) -> None:
    text = await bench.refused(many(100_000))
    assert "more than 20000 files" in text


async def test_many_small_files_fit_on_their_disk(bench: Bench) -> None:
    disk = await bench.disk(many(8_000))
    assert len(names(disk, "/d0")) == 500
    assert len(names(disk, "/d15")) == 500


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"no archive at all, but long enough to be one" * 40, None),
        (b"no archive at all, but long enough to be one" * 40, PLAIN),
        (gzip.compress(b"zipped, but no archive" * 40), None),
        (layer(entry("a", bytes(5000)))[:-60], None),
        (gzip.compress(layer(entry("a", bytes(3000)), zipped=False)[:2000]), None),
    ],
    ids=["garbage", "garbage-tar", "zipped-garbage", "cut-gzip", "cut-tar"],
)
async def test_a_layer_that_is_not_what_it_says_is_refused_by_number(
    bench: Bench, content: bytes, media_type: str | None
) -> None:
    more = {"media_type": media_type} if media_type else {}
    text = await bench.refused(layer(entry("a", "1")), content, **more)
    assert "layer 2 of 2" in text


async def test_an_unknown_kind_of_layer_is_refused_before_it_is_fetched(
    bench: Bench,
) -> None:
    kind = "application/vnd.oci.image.layer.v1.tar+xz"
    text = await bench.refused(layer(entry("a", "1")), media_type=kind)
    assert "layer 1" in text
    assert "tar+xz" in text
    assert not list((bench.root / "store" / "blobs" / "sha256").iterdir())


async def test_a_full_disk_ends_the_unpacking(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([2**40, 2**40])
    monkeypatch.setattr(Cache, "free_bytes", lambda _cache: next(free, 1000))
    text = await bench.refused(many(5_000))
    assert "disk space" in text


@pytest.mark.parametrize(
    "document",
    [
        "[]",
        "{",
        "null",
        '{"schemaVersion": 1, "fsLayers": []}',
        '{"config": {}, "layers": []}',
        '{"config": {"digest": "sha256:../../etc"}, "layers": []}',
        '{"config": {"digest": "%s"}, "layers": [{"digest": 7}]}',
        '{"config": {"digest": "%s"}, "layers": [{"digest": "%s", "size": -1}]}',
        '{"config": {"digest": "%s"}, "layers": [{"digest": "%s", "size": 1}]}',
        '{"config": {"digest": "%s"}, "layers": {}}',
        '{"manifests": 3}',
        '{"manifests": [{"platform": {"os": "linux", "architecture": "amd64"}}]}',
        "[" * 100_000,
        '{"manifests": [{"platform": "linux"}]}',
        '{"manifests": [{"platform": {"os": "\\ud800\\u001b[2J\\n", "architecture": []}}]}',
        '{"mediaType": [], "config": {"digest": "%s"}, "layers": 3}',
        (
            '{"config": {"digest": "%s"}, "layers": [{"digest": "%s", "size": 1, "mediaType": '
            '"application/vnd.oci.image.layer.v1.tar+gzip", "urls": ["http://inside/"]}]}'
        ),
    ],
)
def test_whatever_a_registry_sends_the_answer_is_an_error_that_names_the_image(
    document: str,
) -> None:
    raw = document.replace("%s", "sha256:" + "0" * 64).encode()
    with pytest.raises((ImageError, Refused), match="the-image") as caught:
        found = manifest.read(raw, "the-image")
        if manifest.is_index(found):
            manifest.choose(found, "amd64", "the-image")
        manifest.parse(found, raw, "the-image")
    assert str(caught.value).encode().decode().isprintable()


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=1"},
        {"Env": [1]},
        {"User": 7},
        {"Entrypoint": "sh"},
        {"WorkingDir": []},
        {"Env": ["A=\ud800"]},
        {"User": "\udfff"},
        {"Cmd": ["\ud800"]},
    ],
)
async def test_a_configuration_of_the_wrong_shape_is_refused(
    bench: Bench, config: dict[str, Any]
) -> None:
    assert "its config" in await bench.refused(layer(entry("a", "1")), config=config)


async def test_what_is_unfit_is_not_unfit_for_ever(
    bench: Bench, tmp_path: Path
) -> None:
    """The operator may raise the limit: no verdict is kept."""
    await bench.refused(layer(entry("zeros", bytes(65 * 2**20))))
    policy = dataclasses.replace(bench.policy, max_content=2**30)
    store = ImageService(
        tmp_path / "store", bench.threads, policy, numbers=UserNamespace()
    )
    await store.open()
    disk = await store.prepare(f"oci:{bench.layout.path}:it", "s1", lambda _p: None)
    assert await asyncio.to_thread(Path(disk.path).exists)
