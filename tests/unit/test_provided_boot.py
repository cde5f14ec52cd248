"""Boot files of a package, put to where machines get them from at a driver's start."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from vmdriver.storage.layout import Layout
from vmdriver.storage.programs import boot
from vmdriver.storage.programs.provided_boot import provide


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


def installed(tmp_path: Path, digest: str) -> Path:
    """As a package of that release has them."""
    folder = tmp_path / "installed"
    shutil.rmtree(folder, ignore_errors=True)
    build = folder / digest
    build.mkdir(parents=True)
    said = {"digest": digest, "architecture": "amd64", "kernel_release": "6.1"}
    for name in ("kernel", "initramfs"):
        content = f"{name} of {digest}".encode()
        (build / name).write_bytes(content)
        said[f"{name}_sha256"] = hashlib.sha256(content).hexdigest()
    (build / "manifest.json").write_text(json.dumps(said))
    (folder / "current").symlink_to(digest)
    return folder


def test_a_newer_release_and_an_older_one_again_are_used_and_none_goes(
    layout: Layout, tmp_path: Path
) -> None:
    for digest in ("older", "newer", "older"):
        provide(layout, installed(tmp_path, digest))
        assert boot.load(layout.boot).digest == digest
    assert (layout.boot / "newer" / "kernel").exists()


def test_what_was_cut_off_while_it_was_copied_is_copied_once_more(
    layout: Layout, tmp_path: Path
) -> None:
    for half in (".provided-1", "newer"):
        (layout.boot / half).mkdir()
        (layout.boot / half / "kernel").write_text("half of it")
    (layout.boot / ".provided-1.current").symlink_to("newer")
    provide(layout, installed(tmp_path, "newer"))
    assert boot.load(layout.boot).digest == "newer"
    provide(layout, installed(tmp_path, "newer"))
    assert not list(layout.boot.glob(".provided-*"))


def test_on_a_full_disk_the_ones_before_stay_in_use(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(layout, installed(tmp_path, "older"))
    newer = installed(tmp_path, "newer")

    def full(_source: Path, target: Path) -> None:
        target.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            provide(layout, newer)
    assert boot.load(layout.boot).digest == "older"
    assert not list(layout.boot.glob(".provided-*")), (
        "it does not fill the disk further"
    )
    provide(layout, newer)
    assert boot.load(layout.boot).digest == "newer"


def test_somebodys_own_are_not_replaced(layout: Layout, tmp_path: Path) -> None:
    shutil.copytree(
        installed(tmp_path, "own"), layout.boot, symlinks=True, dirs_exist_ok=True
    )
    provide(layout, installed(tmp_path, "newer"))
    assert boot.load(layout.boot).digest == "own"


@pytest.mark.parametrize("name", ["kernel", "initramfs", "manifest.json"])
@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_damaged_copy_is_replaced_by_what_is_installed(
    name: str, harm: str, layout: Layout, tmp_path: Path
) -> None:
    provide(layout, installed(tmp_path, "newer"))
    file = layout.boot / "newer" / name
    if harm == "changed":
        file.write_text("changed")
    else:
        file.unlink()
    provide(layout, installed(tmp_path, "newer"))
    assert boot.load(layout.boot).digest == "newer"
