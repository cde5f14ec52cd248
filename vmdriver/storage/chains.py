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


def own_layers(directory: Path, sandbox_id: str) -> dict[str, tuple[str, ...]]:
    """Layers that were made for that sandbox (places.new_layer names them), oldest first, each
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
