"""What may lie in a state directory that should not: each kind by name, and the places where a driver looks when it starts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path


def foreign_file(path: Path) -> None:
    path.write_bytes(b"not of this driver\n\xff\xfe")


def dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def directory(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").touch()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def closed(path: Path) -> None:
    directory(path)
    path.chmod(0)


def immutable_inside(path: Path) -> None:
    directory(path)
    set_immutable(path / "inner" / "file", on=True)


def immutable(path: Path) -> None:
    foreign_file(path)
    set_immutable(path, on=True)


KINDS: dict[str, Callable[[Path], None]] = {
    kind.__name__: kind
    for kind in (
        *(foreign_file, dangling_link, loop, directory, pipe, closed),
        *(immutable_inside, immutable),
    )
}

PLACES = (
    *("came-in", "driver.lock", "accelerator.json", "accelerator.json.part", "probe"),
    *("boot/current", "boot/x", "images", "images/blobs", "images/blobs/sha256"),
    *("images/disks", "images/trees", "images/layout", "images/.work-x"),
    *("images/blobs/sha256/x", "images/disks/.x.part", "images/disks/x.json"),
    *("images/disks/x.ext4", "images/trees/x", "images/trees/y/source.json"),
    *("supervisors", "supervisors/.work-x", "supervisors/.x.img.1.tree"),
    *("supervisors/x.img", "layers", "layers/x.qcow2", "layers/lost+found"),
    *("templates", "templates/x", "templates/x.part", "templates/x/manifest.json"),
    *("warm", "warm/warm-x", "warm/x", "sandboxes/lost+found", "sandboxes/.new-x"),
    *("deleted", "deleted/x", "deleted/x/record.json"),
    *("probe/status.img", "probe/console.log", "set-aside", "set-aside/notes.jsonl"),
    *("libvirt", "libvirt/etc", "libvirt/etc/qemu.conf", "libvirt/etc/.qemu.conf.part"),
    *("libvirt/etc/qemu", "libvirt/etc/qemu/x.xml", "libvirt/run", "libvirt/run/qemu"),
    *(
        "libvirt/run/qemu/x.xml",
        "libvirt/run/qemu/driver.pid",
        "libvirt/boot-id",
        "libvirt/boot-id.part",
        "libvirt/lib",
    ),
    *("libvirt/lib/qemu", "libvirt/lib/qemu/qmp-x", "libvirt/lib/qemu/save"),
    *("libvirt/cache", "libvirt/cache/qemu/capabilities/x.xml"),
)
"""Below the state directory."""


def put(state: Path, place: str, kind: str) -> None:
    """In place of what is there. "sandboxes" itself is another matter."""
    path = state / place
    for parent in path.parents:
        if os.path.lexists(parent) and not parent.is_dir():
            parent.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["rm", "-rf", path], check=True)
    KINDS[kind](path)


def set_immutable(path: Path, *, on: bool) -> None:
    subprocess.run(["chattr", "+i" if on else "-i", path], check=True)


def clean(state: Path) -> None:
    """So that it can be removed."""
    subprocess.run(["chattr", "-R", "-f", "-i", state], check=False)
    subprocess.run(["chmod", "-R", "u+rwx", state], check=False)
