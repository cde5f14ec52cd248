"""The files of the embedded libvirt: a root it can use, and what a kill leaves behind."""

from __future__ import annotations

from pathlib import Path

from vmdriver.hypervisor.embedded import (
    embed_uri,
    remove_torn_definitions,
    remove_unstarted_domains,
)


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


def test_a_machine_whose_qemu_was_never_begun_leaves_nothing_to_libvirt(
    tmp_path: Path,
) -> None:
    states, lib = tmp_path / "run" / "qemu", tmp_path / "lib" / "qemu"
    states.mkdir(parents=True)
    link, precious = tmp_path / "link", tmp_path / "precious"
    link.symlink_to(tmp_path)
    precious.mkdir()

    def status(name: str, pid: int, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (states / f"{name}.xml").write_text(
            f"<!-- written by libvirt -->\n<domstatus state='paused' pid='{pid}'>"
            f"<libDir path='{directory}'/><domain type='qemu'/></domstatus>"
        )

    status("running", 4711, lib / "domain-1-running")
    status("unstarted", 0, link / "lib" / "qemu" / "domain-2-unstarted")
    status("elsewhere", 0, precious)
    (states / "torn.xml").write_text("<domstatus pid='0'")
    (states / "autostarted").touch()
    remove_unstarted_domains(tmp_path)
    left = sorted(path.name for path in states.iterdir())
    assert left == ["autostarted", "running.xml", "torn.xml"]
    assert [path.name for path in lib.iterdir()] == ["domain-1-running"]
    assert precious.is_dir(), "not libvirt's to remove"
