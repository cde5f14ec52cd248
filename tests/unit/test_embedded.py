"""The files of the embedded libvirt: a root it can use, and what a kill leaves behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vmdriver.config import SETTINGS
from vmdriver.host.clearing import Clearing
from vmdriver.hypervisor.embedded import (
    embed_uri,
    make_way,
    remove_torn_definitions,
    write_embedded_configuration,
)
from vmdriver.hypervisor.wall.box import Box
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.model.passage import PLACE


def test_a_long_libvirt_root_is_reached_through_a_short_link(tmp_path: Path) -> None:
    assert (
        embed_uri(Path("/var/lib/vmdriver/libvirt"))
        == "qemu:///embed?root=/var/lib/vmdriver/libvirt"
    )
    (tmp_path / "links").mkdir()
    unseen = tmp_path / "links" / "unseen"
    unseen.symlink_to(tmp_path / "mounted elsewhere")
    for root in (tmp_path / ("x" * 80), tmp_path / "a b"):
        root.mkdir()
        link = Path(embed_uri(root, tmp_path / "links").partition("root=")[2])
        assert link.readlink() == root
        assert embed_uri(root, tmp_path / "links").endswith(str(link)), (
            "the same each time"
        )
    assert unseen.is_symlink(), "a driver's whose mounts are its own"


def test_a_half_written_domain_definition_is_removed_and_whole_ones_stay(
    tmp_path: Path,
) -> None:
    definitions = tmp_path / "etc" / "qemu"
    definitions.mkdir(parents=True)
    (definitions / "torn.xml").write_text("<domain><na")
    (definitions / "empty.xml").touch()
    (definitions / "whole.xml").write_text("<domain/>")
    remove_torn_definitions(tmp_path)
    assert [path.name for path in definitions.iterdir()] == ["whole.xml"]


def test_the_short_links_are_not_below_a_sockets_folder_which_is_closed_to_qemu() -> (
    None
):
    for socket in ("bind_socket", "admin_socket"):
        default = SETTINGS[socket].default
        assert default is None or not PLACE.is_relative_to(default.parent)
    link = Path(embed_uri(PLACE / "state" / "libvirt").partition("root=")[2])
    assert link == PLACE / "state" / "libvirt", "short enough to need no link"


def test_libvirt_makes_a_dev_of_its_own_only_around_a_qemu_that_has_no_box(
    tmp_path: Path,
) -> None:
    said = {}
    for boxed in (False, True):
        root = tmp_path / str(boxed)
        write_embedded_configuration(root, "someone", "them", boxed=boxed)
        said[boxed] = (root / "etc" / "qemu.conf").read_text()
    assert "namespaces" not in said[False], "libvirt's own default is one"
    assert said[True] == f"{said[False]}namespaces = [ ]\n"


@pytest.mark.parametrize("others", [False, True])
def test_on_a_full_disk_libvirt_is_configured_as_it_was_if_only_the_box_could_not_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    write_embedded_configuration(tmp_path, "someone", "them", boxed=True)
    file = tmp_path / "etc" / "qemu.conf"
    before = file.read_text()

    def full(part: Path, _text: str) -> int:
        part.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    if others:
        with pytest.raises(OSError, match="No space left"):
            write_embedded_configuration(tmp_path, "nobody", "them")
    else:
        write_embedded_configuration(tmp_path, "someone", "them")
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_what_is_in_the_way_of_the_boxes_is_moved_aside(tmp_path: Path) -> None:
    """Else nothing starts, for want of space that there is."""
    root = tmp_path / "libvirt"
    (root / "boxed-qemu" / "more").mkdir(parents=True)
    (root / "boxes").write_text("no folder")
    make_way(root, Clearing(tmp_path / "aside"))
    program = Boxes(root).make("m", "/usr/bin/true", Box())
    assert Path(program).is_file()
    assert len(list((tmp_path / "aside").glob("*box*"))) == 2
