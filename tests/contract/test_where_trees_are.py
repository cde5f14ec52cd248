"""Where in a file system images are unpacked."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from vmdriver.oci import files
from vmdriver.oci.cache import Cache


def test_trees_are_made_in_another_part_of_the_disk_each(tmp_path: Path) -> None:
    Cache(tmp_path / "images").open()
    shown = subprocess.run(
        ["lsattr", "-d", tmp_path / "images"], capture_output=True, check=False
    )
    kind = subprocess.run(
        ["stat", "-fc", "%T", tmp_path], capture_output=True, check=True
    )
    ext4 = kind.stdout.strip() == b"ext2/ext3"
    assert (b"T" in shown.stdout.split(b" ")[0]) is ext4


def test_a_file_system_that_cannot_do_so_is_fine() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        files.spread(Path(folder))
