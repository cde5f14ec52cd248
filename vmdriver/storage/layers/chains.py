"""What qcow2 layers say themselves of what they stand on (QEMU's docs/interop/qcow2.txt): for
sandboxes whose record cannot be asked.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from vmdriver.errors import StorageError
from vmdriver.host.plain_file import open_plain
from vmdriver.storage.layers import qcow2

_LONGEST_CHAIN = 200
_UNUSED_BYTES = 4 * 65536
"""No layer that was written to is as short. A new one of ours has 197 KB (header, reference
counts, its table's beginning); the first write adds two clusters of 64 KiB (measured, QEMU 7.2).
"""


def all_layers(directory: Path) -> list[Path]:
    """Those that machines of a user of their own have made lie in folders, named by the user."""
    return [*directory.glob("*.qcow2"), *directory.glob("[0-9]*/*.qcow2")]


def all_files(directory: Path) -> list[Path]:
    """The same, and the copies of volumes that lie beside them."""
    copies = directory.glob("*.raw"), directory.glob("[0-9]*/*.raw")
    return [*all_layers(directory), *copies[0], *copies[1]]


def own_layers(directory: Path, sandbox_id: str) -> dict[str, tuple[str, ...]]:
    """Layers that were made for that sandbox (paths.new_layer names them), oldest first, each
    with the layers below it, nearest first. StorageError.
    """
    own = named_for(sandbox_id)
    found = [path for path in all_layers(directory) if own.fullmatch(path.name)]
    chains = {str(path): layers_below(path, directory) for path in found}
    return dict(sorted(chains.items(), key=lambda item: len(item[1])))


def named_for(sandbox_id: str) -> re.Pattern[str]:
    """Names of layers, and of copies of volumes, that were made for that sandbox."""
    return re.compile(rf"{re.escape(sandbox_id)}\.[0-9a-f]{{8}}\.(qcow2|raw)")


def layers_below(path: Path, directory: Path) -> tuple[str, ...]:
    """The qcow2 layers below one, nearest first. StorageError when one is damaged or not there, or
    none of those in `directory`: what a header names anywhere else is not even looked at.
    """
    chain: list[str] = []
    header = qcow2.read(path)
    while header.backing_format == "qcow2":
        below = Path(header.backing)
        if not any(map(below.is_relative_to, (directory, directory.resolve()))):
            raise StorageError(
                f"layer {path.name} stands on something that is no layer",
                detail=header.backing,
                reason=qcow2.REFUSED,
            )
        chain.append(header.backing)
        if len(chain) > _LONGEST_CHAIN:
            raise StorageError(f"layer {path.name} stands on itself")
        header = qcow2.read(below)
    return tuple(chain)


def is_whole(path: Path, below: Path) -> bool:
    """Whether it is a layer that was finished (qemu-img wrote last what it stands on, and we write
    the header last) and stands on `below`. StorageError when it cannot be read.
    """
    try:
        descriptor = open_plain(path)
        try:
            header = os.pread(descriptor, 80, 0)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(
            f"layer {path.name} cannot be read", detail=str(error)
        ) from error
    if not any(header[8:16]) and size <= _UNUSED_BYTES:
        return False  # it was cut off before it could say that
    if header[:4] != qcow2.MAGIC or qcow2.is_marked_corrupt(header):
        return False
    return stands_on(qcow2.read(path), str(below))


def stands_on(header: qcow2.Header, below: str) -> bool:
    """Whether that is what it names. Of the two only ours may be followed, if it is a link."""
    return header.backing in {below, os.path.realpath(below)}


def check(path: str, backing: Sequence[str]) -> int:
    """See that a layer and those below it, nearest first and a raw disk at the end, are such as
    this driver writes them, each on the next. The bytes of the disk. StorageError.
    """
    least = 0
    for place in reversed(range(len(backing))):
        layer, below = (path, *backing)[place : place + 2]
        header = qcow2.read(layer)
        kind = "raw" if place == len(backing) - 1 else "qcow2"
        if header.backing_format != kind or not stands_on(header, below):
            problem = f"stands on another {header.backing_format} file than it did"
        elif header.virtual_bytes < least:
            problem = "has a smaller disk than what it stands on"
        else:
            least = header.virtual_bytes
            continue
        raise StorageError(
            f"layer {Path(layer).name} {problem}",
            detail=f"{layer} says {header}",
            reason=qcow2.REFUSED,
            resolution="it is left as it is, and nothing opens it; return to a snapshot, or "
            "delete the sandbox",
        )
    return least


def may_be_made(path: Path, below: Path) -> bool:
    """Whether a layer that is wanted there has to be made: there is none, or nobody can have
    written to it. False: it is whole, and stays. StorageError: it was written to, and is not what
    is wanted; to make it anew would lose what is in it.
    """
    try:
        info = path.lstat()
        if stat.S_ISREG(info.st_mode) and info.st_size <= _UNUSED_BYTES:
            return True
    except FileNotFoundError:
        return True
    try:
        if is_whole(path, below):
            return False
        detail = f"it does not stand on {below}, or is damaged"
    except StorageError as error:
        detail = error.text()
    raise StorageError(
        f"the disk layer {path.name} was written to and cannot be used; it is left as it is",
        detail=detail,
        reason="LayerDamaged",
        resolution="return to a snapshot, or delete the sandbox; its header may lead whoever looks "
        "at it to other files",
    )
