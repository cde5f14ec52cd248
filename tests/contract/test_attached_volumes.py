"""Where init lets a volume be seen inside of an image's root (images/guest/attach.c)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.contract.guest_programs import compiled

UID, GID = 10001, 10002
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("attach") / "attach", "attach.c")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image's, beside a place that none of it may reach, and a volume."""
    for name in ("root/srv", "outside/empty", "volume"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "volume/content").write_text("content")
    return tmp_path / "root"


def attach(program: Path, root: Path, place: str, then: str = "true") -> str:
    """Output of a shell in whose mounts it is; raises CalledProcessError where that cannot be."""
    volume = root.parent / "volume"
    command = f'"{program}" "{root}" "{place}" "{volume}" {UID} {GID} && cd "{root}" && {then}'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        check=True,
        capture_output=True,
        text=True,
        timeout=5,
    )
    return done.stdout


def test_a_volume_is_seen_where_it_is_wanted_and_is_the_sandbox_users(
    program: Path, root: Path
) -> None:
    shown = attach(program, root, "/srv/some/data", "cat srv/some/data/content")
    assert shown == "content"
    assert (root / "srv/some/data").is_dir(), "made where it was missing"
    assert not list((root / "srv/some/data").iterdir()), "mounted, not copied"
    found = (root.parent / "volume").stat()
    assert (found.st_uid, found.st_gid) == (UID, GID)
    assert (root.parent / "volume/content").stat().st_uid == 0, "what is in it stays"


@pytest.mark.parametrize("target", ["/", "../outside", "srv", "nowhere", "/outside"])
@pytest.mark.parametrize("place", ["/link", "/link/below", "/srv/link"])
def test_a_link_on_the_way_is_not_followed(
    program: Path, root: Path, place: str, target: str
) -> None:
    where = root / ("srv/link" if place == "/srv/link" else "link")
    where.symlink_to(target)
    before = sorted(str(path) for path in root.parent.rglob("*"))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        attach(program, root, place)
    assert "link: " in caught.value.stderr
    assert sorted(str(path) for path in root.parent.rglob("*")) == before


def test_what_is_no_directory_is_not_mounted_on(program: Path, root: Path) -> None:
    (root / "file").write_text("")
    os.mkfifo(root / "fifo")
    for place in ("/file", "/fifo", "/file/below"):
        with pytest.raises(subprocess.CalledProcessError):
            attach(program, root, place)


@pytest.mark.parametrize("place", ["/..", "/srv/../../outside", "/srv/."])
def test_no_way_leads_out_of_the_image(program: Path, root: Path, place: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        attach(program, root, place)
