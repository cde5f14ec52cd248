"""Small libraries of ours, in C: they are made on the host, for the C library that it has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vmdriver.host import process

_COMPILE_S = 60.0
_FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,relro,-z,now")


def place_of(source: Path, directory: Path) -> Path:
    """Where the library of exactly that source is, once it was made."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    return directory / f"{source.stem.replace('_', '-')}-{digest}.so"


async def make(source: Path, file: Path, mode: int) -> None:
    """Compile `source` to `file`, which is whole or not there. CommandError, OSError."""
    part = file.with_suffix(".part")
    file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    command = ["gcc", *_FLAGS, "-o", str(part), str(source)]
    await process.run(command, deadline_s=_COMPILE_S)
    part.chmod(mode)
    # Not in another thread: those that began earlier do not see the mounts of this one.
    _write_out(part)
    part.replace(file)


def _write_out(path: Path) -> None:
    """A library that a lost current left torn would be found again and again."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
