"""What leaves the image cache, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cached:
    """A base disk or a layer."""

    path: str
    stored_bytes: int
    used: float
    """When it was asked for last, seconds since 1970."""
    in_use: bool
    """A sandbox, a template, or work under way needs it."""
    known: bool = True
    """False: nobody can be given it any more."""


@dataclass(frozen=True)
class Limits:
    """Of the whole cache; 0: none."""

    most_bytes: int = 0
    most_age_s: float = 0.0
    free_floor: int = 0


def to_remove(
    cached: Iterable[Cached], limits: Limits, now: float, free_bytes: int
) -> list[Cached]:
    """What nobody can be given first; then what is too old; then the least recently used until
    sizes fit. Never what is in use.
    """
    everything = list(cached)
    total = sum(item.stored_bytes for item in everything)
    chosen: list[Cached] = []
    free = [item for item in everything if not item.in_use]
    for item in sorted(free, key=lambda i: (i.known, i.used)):
        gone = sum(i.stored_bytes for i in chosen)
        too_old = limits.most_age_s and now - item.used > limits.most_age_s
        too_much = limits.most_bytes and total - gone > limits.most_bytes
        too_full = limits.free_floor and free_bytes + gone < limits.free_floor
        if not item.known or too_old or too_much or too_full:
            chosen.append(item)
    return chosen
