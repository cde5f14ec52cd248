"""Small libraries and programs of ours, in C: they are made on the host, for the C library that it
has.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from vmdriver.host import process

_COMPILE_S = 60.0
_DIGITS = 12
"""Of a source's digest, in a name."""
_LIBRARY = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,relro,-z,now")
_PROGRAM = ("-O2", "-static")
"""Nothing is looked for and loaded when it begins."""


def place_of(source: Path, directory: Path) -> Path:
    """Where the library of exactly that source is, once it was made."""
    return program_place_of(source, directory).with_suffix(".so")


def program_place_of(source: Path, directory: Path) -> Path:
    """The same for a program."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:_DIGITS]
    return directory / f"{source.stem.replace('_', '-')}-{digest}"


def remove_others(source: Path, place: Path) -> None:
    """Of a program that is copied before it is run, nobody needs those that earlier releases have
    made, nor one that was not made to its end. OSError.
    """
    stem = source.stem.replace("_", "-")
    own = re.compile(rf"{re.escape(stem)}-[0-9a-f]{{{_DIGITS}}}(\.part)?")
    for path in place.parent.iterdir():
        if path != place and own.fullmatch(path.name):
            path.unlink(missing_ok=True)


async def make(source: Path, file: Path, mode: int) -> None:
    """Compile `source` to the library `file`, which is whole or not there. CommandError,
    OSError.
    """
    await _compile(source, file, mode, _LIBRARY)


async def make_program(source: Path, file: Path, mode: int) -> None:
    """The same for a program."""
    await _compile(source, file, mode, _PROGRAM)


async def _compile(source: Path, file: Path, mode: int, flags: tuple[str, ...]) -> None:
    part = file.with_suffix(".part")
    file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    command = ["gcc", *flags, "-o", str(part), str(source)]
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
