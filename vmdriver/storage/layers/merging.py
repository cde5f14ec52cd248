"""Has qemu-img write a layer into the one below it: the only program that ever opens layers besides
a machine's own QEMU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmdriver.host.confined.box import Box, Limits, User
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import Disk, MachineUser

_CPU_S = 600
_WRITTEN = 2
"""The layer that is merged, which is emptied, and the one below."""


def chain(files: Sequence[str]) -> dict[str, Any]:
    """A root disk as QEMU's own options name it: each layer, topmost first, and the raw disk at
    the end, every one with its format and with what is below. So QEMU guesses no format, and
    follows no name out of a file. Only the two that are written are locked: others read the rest,
    and whoever reads a file can lock it against all others.
    """
    *layers, base = files
    found: Mapping[str, Any] = {"driver": "raw", "file": _shared(base)}
    for place, path in reversed([*enumerate(layers)]):
        file = _file(path) if place < _WRITTEN else _shared(path)
        found = {"driver": "qcow2", "file": file, "backing": found}
    return dict(found)


def _file(path: str) -> Mapping[str, str]:
    return {"driver": "file", "filename": path}


def _shared(path: str) -> Mapping[str, str]:
    return {**_file(path), "locking": "off"}


def command(disk: Disk) -> list[str]:
    """Without -b it is the next layer below that is written to; -d: the emptied one would not be
    used again anyway.
    """
    image = json.dumps(chain((disk.path, *disk.backing)))
    return ["qemu-img", "commit", "-q", "-d", f"json:{image}"]


def box(disk: Disk, user: Ownership | MachineUser) -> Box:
    """Where it runs: as the machine's own user, who has written these very layers, with them, what
    they stand on, and nothing else to open.
    """
    below, *others = disk.backing
    return Box(
        User(user.uid, user.gid),
        read=tuple(map(Path, others)),
        write=(Path(disk.path), Path(below)),
        limits=Limits(cpu_s=_CPU_S),
    )
