"""Space on the disk for copies of volumes: one that becomes full has every machine stand still."""

from __future__ import annotations

from vmdriver.errors import Exhausted
from vmdriver.lifecycle.ports.host import Disks
from vmdriver.lifecycle.ports.volumes import FREE_KEPT


async def check_free(
    disks: Disks, path: str, needed: int, what: str, resolution: str
) -> None:
    """Whether so many bytes can be written where `path` is, and what is to be kept free stays so.
    `what`: what they are for. Exhausted.
    """
    free = await disks.free_bytes(path)
    if free < needed + FREE_KEPT:
        raise Exhausted(
            f"only {free // 2**20} MiB are free for {what}, which need "
            f"{(needed + FREE_KEPT) // 2**20}",
            reason="DiskFull",
            resolution=resolution,
        )
