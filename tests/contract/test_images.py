"""lifecycle.ports.Images with skopeo, umoci, mke2fs and a real registry."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import push, registry
from vmdriver.errors import HostError, InvalidRequest, NotFound, Refused
from vmdriver.host.threads import Pool
from vmdriver.oci.store import ImagePolicy, ImageStore


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny images: "tiny" for this architecture and "foreign" for another."""
    base = tmp_path_factory.mktemp("images")
    tree = base / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hello").write_text("hello\n")
    with tarfile.open(base / "root.tar", "w") as archive:
        archive.add(tree, "/")
    target = base / "layout"
    run("umoci", "init", "--layout", target)
    for tag, architecture in (
        (
            "tiny",
            subprocess.run(
                ["dpkg", "--print-architecture"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip(),
        ),
        ("foreign", "s390x"),
    ):
        run("umoci", "new", "--image", f"{target}:{tag}")
        run(
            "umoci", "raw", "add-layer", "--image", f"{target}:{tag}", base / "root.tar"
        )
        run(
            "umoci",
            "config",
            "--image",
            f"{target}:{tag}",
            "--architecture",
            architecture,
        )
    return target


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as address:
        for tag in ("tiny", "foreign"):
            push(layout, tag, f"{address}/{tag}:1")
        yield address


@pytest.fixture
async def store(
    tmp_path: Path, address: str, layout: Path
) -> AsyncIterator[ImageStore]:
    pool = Pool("images", 2)
    policy = ImagePolicy(64, (address,), (layout.parent,))
    store = ImageStore(tmp_path / "store", pool, policy)
    await store.open()
    yield store
    left = list((tmp_path / "store").glob(".work-*"))
    assert left == [], "nothing half-made stays"
    pool.close()


def disks(store: ImageStore) -> list[Path]:
    return list(store._disks.iterdir())


async def test_an_image_becomes_a_disk_once(store: ImageStore, address: str) -> None:
    told: list[str] = []
    first = await store.prepare(
        f"{address}/tiny:1", lambda reason, detail: told.append(reason)
    )
    assert "CacheMiss" in told
    told.clear()
    assert (
        await store.prepare(
            f"{address}/tiny:1", lambda reason, detail: told.append(reason)
        )
        == first
    )
    assert told == ["ResolvingImage", "CacheHit"]
    assert Path(first.path).stat().st_mode & 0o777 == 0o444
    content = subprocess.run(
        ["debugfs", "-R", "cat /etc/hello", first.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert content.stdout == "hello\n"
    by_digest = await store.prepare(f"{address}/tiny@{first.digest}", lambda *_: None)
    assert by_digest == first


async def test_two_requests_share_one_build(store: ImageStore, address: str) -> None:
    import asyncio

    both = await asyncio.gather(
        *(store.prepare(f"{address}/tiny:1", lambda *_: None) for _ in range(2))
    )
    assert both[0] == both[1]
    assert len(disks(store)) == 1


async def test_a_local_layout_is_used_only_where_allowed(
    store: ImageStore, layout: Path, tmp_path: Path
) -> None:
    disk = await store.prepare(f"oci:{layout}:tiny", lambda *_: None)
    assert disk.digest.startswith("sha256:")
    for reference in (
        "oci:/etc",
        "oci:relative",
        f"oci:{layout.parent}/../../etc",
        f"oci:{tmp_path}",
    ):
        with pytest.raises(InvalidRequest, match=r"template\.image"):
            await store.prepare(reference, lambda *_: None)
    with pytest.raises(NotFound):
        await store.prepare(f"oci:{layout.parent}/nothing", lambda *_: None)


async def test_what_does_not_exist_is_not_found(
    store: ImageStore, address: str
) -> None:
    for reference in (
        f"{address}/nothing:1",
        f"{address}/tiny:nothing",
        f"{address}/tiny@sha256:{'0' * 64}",
    ):
        with pytest.raises(NotFound, match=r"template\.image"):
            await store.prepare(reference, lambda *_: None)
    assert disks(store) == []


async def test_another_architecture_is_refused_by_name(
    store: ImageStore, address: str
) -> None:
    with pytest.raises(Refused, match="s390x"):
        await store.prepare(f"{address}/foreign:1", lambda *_: None)


async def test_a_truncated_layer_leaves_nothing(
    store: ImageStore, layout: Path, tmp_path: Path
) -> None:
    broken = layout.parent / "broken"
    run("cp", "-r", layout, broken)
    index = json.loads((broken / "index.json").read_text())
    entry = next(
        m
        for m in index["manifests"]
        if m["annotations"]["org.opencontainers.image.ref.name"] == "tiny"
    )
    blobs = broken / "blobs" / "sha256"
    manifest = json.loads((blobs / entry["digest"].split(":")[1]).read_text())
    layer = blobs / manifest["layers"][0]["digest"].split(":")[1]
    layer.write_bytes(layer.read_bytes()[:50])
    with pytest.raises(HostError):
        await store.prepare(f"oci:{broken}:tiny", lambda *_: None)
    assert disks(store) == []


async def test_half_made_work_of_a_killed_process_is_removed(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "store" / ".work-killed").mkdir()
    (tmp_path / "store" / ".work-killed" / "disk").write_text("half")
    await store.open()
    assert not (tmp_path / "store" / ".work-killed").exists()
