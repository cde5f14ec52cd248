"""What is on a sandbox's disk, looked at from the host: what a boot would show, without one."""

from __future__ import annotations

import subprocess
from pathlib import Path


def run(*words: object, fine: tuple[int, ...] = (0,)) -> str:
    """What that program prints."""
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode in fine, (words, done.stdout, done.stderr)
    return done.stdout


def whole(layer: str, disk: Path) -> Path:
    """That layer with all that it stands on, as a start would have it: its journal is replayed, and the rest is whole."""
    run("qemu-img", "convert", "-U", "-O", "raw", layer, disk)
    run("e2fsck", "-p", disk, fine=(0, 1))
    run("e2fsck", "-f", "-n", disk)
    return disk
