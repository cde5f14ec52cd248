"""What leaves the image cache, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from vmdriver.lifecycle.ports.images import CachedFile, CacheLimits


def to_remove(
    cached: Iterable[CachedFile], limits: CacheLimits, now: float, free_bytes: int
) -> list[CachedFile]:
    """What nobody can be given first; then what is too old; then the least recently used until
    sizes fit. Never what is in use.
    """
    everything = list(cached)
    total = sum(item.stored_bytes for item in everything)
    chosen: list[CachedFile] = []
    free = [item for item in everything if not item.in_use]
    for item in sorted(free, key=lambda i: (i.known, i.used)):
        gone = sum(i.stored_bytes for i in chosen)
        too_old = limits.most_age_s and now - item.used > limits.most_age_s
        too_much = limits.most_bytes and total - gone > limits.most_bytes
        too_full = limits.free_floor and free_bytes + gone < limits.free_floor
        if not item.known or too_old or too_much or too_full:
            chosen.append(item)
    return chosen
