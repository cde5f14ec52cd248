"""The image store's blocking file work."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vmdriver.host.plain_file import open_plain, read_start

_NODES = {stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK}
BLOCK = 4096
"""Of a file system: whatever has content takes that much at least."""
_DEEP = 200
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
"""ioctl_iflags(2), on 64-bit machines."""
_TOP = 0x20000
"""FS_TOPDIR_FL"""
_CHUNK = 1024 * 1024


def spread(folder: Path) -> None:
    """Have each new folder in this one begin in another part of the disk, where the file system
    can: ext4 does not give out an inode again for minutes after its file went, and asks each such
    inode at each new file. A tree that is made where one has just been removed took three times
    as long.
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            raw = fcntl.ioctl(opened, _GET_FLAGS, struct.pack("@L", 0))
            flags = struct.pack("@L", struct.unpack("@L", raw)[0] | _TOP)
            fcntl.ioctl(opened, _SET_FLAGS, flags)
    finally:
        os.close(opened)


def remove_tree(path: Path) -> None:
    """Remove a directory, however deep; absent is fine. No link is followed."""
    try:
        shutil.rmtree(path, ignore_errors=not path.exists())
    except RecursionError:  # Python 3.11 and 3.12 go down by calling themselves
        _raise_up(path)
        remove_tree(path)


def _raise_up(tree: Path) -> None:
    """Move folders that lie deep to the top, so that none is deeper than _DEEP any more."""
    top = os.fsencode(tree)
    pending = [(top, 0)]
    while pending:
        folder, depth = pending.pop()
        with os.scandir(folder) as entries:
            found = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        if depth < _DEEP:
            pending += [(path, depth + 1) for path in found]
            continue
        for path in found:
            aside = top + b"/.deep-" + os.urandom(8).hex().encode()
            os.rename(path, aside)  # noqa: PTH104 - names are bytes here: they need not be UTF-8
            pending.append((aside, 1))


@dataclass(frozen=True)
class Tree:
    """What is in an unpacked image."""

    content: int
    """Bytes that it takes in blocks of a file system."""
    files: int


def tidy(tree: Path, devices: Collection[bytes] = ()) -> Tree:
    """Count what is there, links not followed. Device nodes and sockets are removed: the guest has
    its own, and one in the root file system would be a way around what its user may open.
    `devices`: paths in the tree of nodes that layers have. Who unpacks may not make nodes, and has
    put an empty file into the place of each. OSError where the tree is none.
    """
    content = files = 0
    top = os.fsencode(tree)
    if not stat.S_ISDIR(os.lstat(top).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(tree))
    for directory, folders, names in os.walk(top):
        for name in (*names, *folders):
            path = os.path.join(directory, name)  # noqa: PTH118 - a hot loop over every file
            found = os.lstat(path)
            kind = stat.S_IFMT(found.st_mode)
            if kind in _NODES or (
                devices
                and kind == stat.S_IFREG
                and found.st_size == 0
                and path[len(top) + 1 :] in devices
            ):
                os.unlink(path)  # noqa: PTH108 - names are bytes here: they need not be UTF-8
                continue
            files += 1
            content += max(BLOCK, -(-found.st_size // BLOCK) * BLOCK)
    return Tree(content, files)


def digest(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """sha256 over a sparse file: each MiB that is not all zeros, with its offset before it. Holes
    cost nothing, and count as the zeros that they are.
    """
    digest, zeros = hashlib.sha256(), bytes(_CHUNK)
    with path.open("rb", buffering=0) as file:
        size, at = file.seek(0, os.SEEK_END), 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    break
                raise
            chunk = os.pread(file.fileno(), _CHUNK, at)
            if chunk != zeros[: len(chunk)]:
                digest.update(at.to_bytes(8, "little") + chunk)
            at += _CHUNK
        digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()


def stored_bytes(path: Path) -> int:
    """That a file really takes."""
    return path.stat().st_blocks * 512


def take_over(
    path: Path, mode: int, *, links: bool = False, into: Path | None = None
) -> None:
    """What a program in a box made becomes root's. OSError where it is anything but a plain file
    that has this one name, or with `links`, any number of them: that would lead elsewhere. `into`:
    a further name that it gets, whatever has the first one by then.
    """
    descriptor = open_plain(path)
    try:
        if os.fstat(descriptor).st_nlink != 1 and not links:
            raise OSError(errno.EMLINK, "it has another name, too", str(path))
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, mode)
        if into is not None:
            # Without a descriptor os.link asks link(2), which does not follow this.
            os.link(f"/proc/self/fd/{descriptor}", into, src_dir_fd=descriptor)
    finally:
        os.close(descriptor)


def read_small(path: Path, most: int = 4 * 2**20) -> bytes:
    """What a program in a box wrote. OSError where it is no plain file, or larger."""
    content = read_start(path, most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content


def replace(path: Path, content: bytes) -> None:
    """A file of root's in a folder that a program in a box has left, whatever has its name there.
    Not durable.
    """
    part = path.with_name(f".{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o444)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
        file.write(content)
    part.chmod(0o444)
    part.replace(path)


def publish(part: Path, path: Path, mode: int = 0o400) -> None:
    """Sync and rename into place: from now on the file counts as present. Ours alone: machines are
    let in when they come to stand on it.
    """
    part.chmod(mode)
    sync(part)
    part.rename(path)
    sync_directory(path.parent)


def sync(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
