"""The files of the embedded libvirt: a root it can use, and what a kill leaves behind."""

from __future__ import annotations

from pathlib import Path

from vmdriver.hypervisor.embedded import embed_uri, remove_torn_definitions


def test_a_long_libvirt_root_is_reached_through_a_short_link(tmp_path: Path) -> None:
    assert (
        embed_uri(Path("/var/lib/vmdriver/libvirt"))
        == "qemu:///embed?root=/var/lib/vmdriver/libvirt"
    )
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "stale").symlink_to(tmp_path / "gone")
    for root in (tmp_path / ("x" * 80), tmp_path / "a b"):
        root.mkdir()
        link = Path(embed_uri(root, tmp_path / "links").partition("root=")[2])
        assert link.readlink() == root
        assert embed_uri(root, tmp_path / "links").endswith(str(link)), (
            "the same each time"
        )


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
