"""What a program needs to run on a system that has none of it: its loader and its libraries."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vmdriver.errors import CommandError, Refused
from vmdriver.host import process
from vmdriver.host.confined.box import Box, ImageRoot, Limits, User
from vmdriver.host.confined.user_namespace import is_its

_ELF = b"\x7fELF"
_INTERPRETER = re.compile(r"\[Requesting program interpreter: ([^\]]+)\]")
_NEEDED = re.compile(r"\(NEEDED\)\s+Shared library: \[([^\]]+)\]")
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.~-]*")
_DIRECTORIES = ("lib", "usr/lib", "lib64", "usr/lib64", "usr/local/lib")
_MOST_LINKS = 40
_NAME_SERVICES = ("libnss_files.so.2", "libnss_dns.so.2")
"""A glibc before 2.34 loads them when it looks up a user or a host: not the image's."""
_RECIPE = b"a loader that looks for nothing elsewhere"
"""Part of the digest: disks that an earlier driver made of the same files are other ones."""
_LIMITS = Limits(cpu_s=60, address_space=2**31, file_size=0)


@dataclass(frozen=True)
class Bundle:
    """A program with what it cannot do without. No interpreter: it is static, or a script of what
    the guest has.
    """

    program: Path
    interpreter: Path | None = None
    """Its dynamic loader."""
    libraries: tuple[tuple[str, Path], ...] = ()
    """By the name that programs call them."""

    def digest(self) -> str:
        """Of everything in it, 64 hexadecimal digits."""
        with self.program.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if self.interpreter is not None:
            digest.update(_RECIPE)
        loader = [(self.interpreter.name, self.interpreter)] if self.interpreter else []
        for name, path in (*loader, *self.libraries):
            digest.update(f"\0{name}\0".encode() + path.read_bytes())
        return digest.hexdigest()


async def bundle_of(program: Path, root: Path, reader: ImageRoot) -> Bundle:
    """Of a program below `root`, a file system's root directory. Nothing of it is run; `reader`
    looks into it, in a box. Refused when a library is missing.
    """
    with program.open("rb") as file:
        if file.read(4) != _ELF:
            return Bundle(program)
    found = _INTERPRETER.search(await _read_elf("-lW", program, reader))
    if found is None:
        return Bundle(program)
    loader = resolve(root, found[1])
    if loader is None:
        raise _missing(program, found[1])
    services = ((name, _find(root, name)) for name in _NAME_SERVICES)
    libraries = {name: path for name, path in services if path is not None}
    wanted = [program, *libraries.values()]
    while wanted:
        text = await _read_elf("-dW", wanted.pop(), reader)
        for name in _NEEDED.findall(text):
            if name in libraries or name == loader.name:
                continue
            # The name becomes a file's on the disk that is made: it must not lead elsewhere.
            path = _find(root, name) if _NAME.fullmatch(name) else None
            if path is None:
                raise _missing(program, name)
            libraries[name] = path
            wanted.append(path)
    return Bundle(program, loader, tuple(sorted(libraries.items())))


async def _read_elf(what: str, path: Path, reader: ImageRoot) -> str:
    found = path.stat()
    theirs = is_its(found) or found.st_mode & stat.S_IROTH
    box = Box(reader if theirs else User(0, 0), read=(path,), limits=_LIMITS)
    command = ["readelf", what, "--", str(path)]
    try:
        done = await process.run(command, deadline_s=60, box=box)
    except CommandError as error:
        raise Refused(
            f"the supervisor's {path.name} cannot be read: {error}",
            detail=error.detail,
            reason="SupervisorUnfit",
        ) from error
    return done.stdout.decode(errors="replace")


def _find(root: Path, name: str) -> Path | None:
    for directory in _library_directories(root):
        found = resolve(root, f"{directory}/{name}")
        if found is not None:
            return found
    return None


def _library_directories(root: Path) -> Iterator[str]:
    for directory in _DIRECTORIES:
        yield directory
        inside = resolve(root, directory, want_file=False)
        if inside is not None:  # Debian's directories per architecture
            yield from (
                f"{directory}/{p.name}" for p in sorted(inside.glob("*-linux-*"))
            )


def resolve(root: Path, path: str, *, want_file: bool = True) -> Path | None:
    """A path as a process whose root is `root` would find it: links never lead outside. None when
    there is nothing.
    """
    parts = [p for p in reversed(PurePosixPath(path).parts) if p != "/"]
    at, links = root, 0
    while parts:
        part = parts.pop()
        if part == "..":
            at = at.parent if at != root else root
            continue
        step = at / part
        if step.is_symlink():
            links += 1
            target = PurePosixPath(os.readlink(step))  # noqa: PTH115 - the text counts, not a Path of this host
            if links > _MOST_LINKS:
                return None
            at = root if target.is_absolute() else at
            parts += [p for p in reversed(target.parts) if p != "/"]
            continue
        at = step
    there = at.is_file() if want_file else at.is_dir()
    return at if there else None


def _missing(program: Path, name: str) -> Refused:
    return Refused(
        f"the supervisor {program.name} needs {name}, which is not there",
        reason="SupervisorUnfit",
        resolution="use a static build, or an image that has its libraries",
    )
