"""What qcow2 layers say themselves of what they stand on (QEMU's docs/interop/qcow2.txt): for
sandboxes whose record cannot be asked.
"""

from __future__ import annotations

import re
from pathlib import Path

from vmdriver.errors import StorageError

_MAGIC = b"QFI\xfb"
_LONGEST_NAME = 1023
_LONGEST_CHAIN = 200
_UNUSED_BYTES = 4 * 65536
"""No layer that was written to is as short. A new one of ours has 197 KB (header, reference
counts, its table's beginning); the first write adds two clusters of 64 KiB (measured, QEMU 7.2).
"""
_CORRUPT = 1 << 1


def own_layers(directory: Path, sandbox_id: str) -> dict[str, tuple[str, ...]]:
    """Layers that were made for that sandbox (paths.new_layer names them), oldest first, each
    with the layers below it, nearest first. StorageError.
    """
    own = named_for(sandbox_id)
    found = [path for path in directory.iterdir() if own.fullmatch(path.name)]
    chains = {str(path): layers_below(path) for path in found}
    return dict(sorted(chains.items(), key=lambda item: len(item[1])))


def named_for(sandbox_id: str) -> re.Pattern[str]:
    """Names of files that are layers which were made for that sandbox."""
    return re.compile(rf"{re.escape(sandbox_id)}\.[0-9a-f]{{8}}\.qcow2")


def layers_below(path: Path) -> tuple[str, ...]:
    """The qcow2 layers below one, nearest first. StorageError when one is damaged or not there."""
    chain: list[str] = []
    below = _backing(path)
    while below is not None and (after := _backing(below)) is not None:
        chain.append(str(below))
        if len(chain) > _LONGEST_CHAIN:
            raise StorageError(f"layer {path.name} stands on itself")
        below = after
    return tuple(chain)


def _backing(path: Path) -> Path | None:
    """What a layer stands on. None: it is no layer, but the raw disk below all of them."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
            if header[:4] != _MAGIC:
                return None
            offset = int.from_bytes(header[8:16], "big")
            size = int.from_bytes(header[16:20], "big")
            if not offset or not 0 < size <= _LONGEST_NAME:
                raise StorageError(f"layer {path.name} does not say what it stands on")
            file.seek(offset)
            name = file.read(size).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"layer {path.name} cannot be read", detail=str(error)
        ) from error
    return path.parent / name


def is_whole(path: Path, below: Path) -> bool:
    """Whether it is a layer that was finished (qemu-img writes last what it stands on) and stands
    on `below`. StorageError when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(80)
        if not any(header[8:16]) and path.stat().st_size <= _UNUSED_BYTES:
            return False  # it was cut off before it could say that
        found = _backing(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(
            f"layer {path.name} cannot be read", detail=str(error)
        ) from error
    # Before version 3 there are no such flags.
    flags = header[72:80] if header[4:8] > b"\0\0\0\2" else b""
    corrupt = int.from_bytes(flags, "big") & _CORRUPT
    return not corrupt and found is not None and found.resolve() == below.resolve()


def may_be_made(path: Path, below: Path) -> bool:
    """Whether a layer that is wanted there has to be made: there is none, or nobody can have
    written to it. False: it is whole, and stays. StorageError: it was written to, and is not what
    is wanted; to make it anew would lose what is in it.
    """
    if not path.exists() or path.stat().st_size <= _UNUSED_BYTES:
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
        resolution="look at it with qemu-img info and qemu-img check; return to a snapshot, "
        "or delete the sandbox",
    )
