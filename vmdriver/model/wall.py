"""The wall around a machine: its parts, by name, and what a host can give of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

WallPart = Literal[
    "uid", "namespace", "box", "seccomp", "limits", "sealed-memory", "cgroup"
]
ALL_PARTS: tuple[WallPart, ...] = get_args(WallPart)
MEANING: Mapping[WallPart, str] = {
    "uid": "a host user of its own",
    "namespace": "a network namespace of its own",
    "box": "QEMU sees /usr and its own files only",
    "seccomp": "QEMU's system calls are filtered",
    "limits": "QEMU's processes, files and memory are limited",
    "sealed-memory": "what it maps of a template cannot be changed",
    "cgroup": "the kernel limits its memory, processes, CPU and I/O",
}
ISOLATION_UNAVAILABLE = "IsolationUnavailable"
"""Reason of a start that is refused since a part of the wall cannot be had."""


@dataclass(frozen=True)
class Lack:
    """A part that a machine cannot have here, why, and what an operator can do about it."""

    part: WallPart
    why: str
    resolution: str


@dataclass(frozen=True)
class Offer:
    """What one source of parts can give a machine, and what it cannot."""

    parts: tuple[WallPart, ...] = ()
    lacks: tuple[Lack, ...] = ()


def joined(offers: Iterable[Offer]) -> Offer:
    """All of them as one, the parts in the order in which they are listed above.

    >>> joined([Offer(("limits",)), Offer(("uid",))]).parts
    ('uid', 'limits')
    """
    offers = list(offers)
    given = {part for offer in offers for part in offer.parts}
    lacks = tuple(lack for offer in offers for lack in offer.lacks)
    return Offer(tuple(part for part in ALL_PARTS if part in given), lacks)
