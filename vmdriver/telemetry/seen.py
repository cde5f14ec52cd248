"""One look at a driver, as numbers: what is, not what happened (lifecycle/engine/measures.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vmdriver.lifecycle.ports.images import KnownImage
from vmdriver.wiring import Core

Attributes = Mapping[str, str]


@dataclass(frozen=True)
class Shown:
    """A metric of which one look gives all the values. `kind`: a counter only ever grows."""

    name: str
    unit: str
    description: str
    kind: Literal["gauge", "counter"] = "gauge"


SANDBOXES = Shown("vmdriver.sandboxes", "{sandbox}", "sandboxes, by phase")
STILL = Shown(
    "vmdriver.sandboxes.still", "{sandbox}", "machines that stand still, by reason"
)
SET_ASIDE = Shown(
    "vmdriver.sandboxes.unreadable", "{sandbox}", "sandboxes that cannot be read"
)
SANDBOX_LIMIT = Shown("vmdriver.sandboxes.limit", "{sandbox}", "max_sandboxes")
COMMITTED = Shown(
    "vmdriver.memory.committed", "By", "memory of machines that are meant to run"
)
MEMORY_LIMIT = Shown("vmdriver.memory.limit", "By", "max_committed_mem_mib")
ADDRESSES = Shown(
    "vmdriver.addresses.left", "{block}", "blocks of address_pool that nobody has"
)
USERS = Shown(
    "vmdriver.machine_uids.left", "{user}", "numbers of machine_uids that nobody has"
)
WATCHERS = Shown("vmdriver.watchers", "{watcher}", "streams of WatchSandboxes")
TEMPLATES = Shown("vmdriver.templates", "{template}", "templates that can be used")
WAITING = Shown("vmdriver.warm_pool.waiting", "{machine}", "machines of the warm pool")
SNAPSHOTS = Shown("vmdriver.snapshots", "{snapshot}", "snapshots of all sandboxes")
SNAPSHOT_BYTES = Shown("vmdriver.snapshots.size", "By", "what they take on disk")
IMAGES = Shown("vmdriver.images", "{image}", "images that are prepared")
IMAGE_BYTES = Shown("vmdriver.images.size", "By", "what they take on disk")
DISK = Shown("vmdriver.disk.used", "By", "what state_dir holds on disk, by its folders")
DISK_FREE = Shown("vmdriver.disk.free", "By", "space left on the disk of state_dir")


@dataclass(frozen=True)
class Value:
    """One of a metric's."""

    shown: Shown
    number: float
    attributes: Attributes


def of_core(core: Core, sandbox_limit: int, memory_limit_mib: int) -> list[Value]:
    """What the core knows without asking anybody. In the loop's thread."""
    accepted = [worker.sandbox for worker in core.sandboxes.accepted()]
    phases = Counter(
        (s.record.phase.value, s.record.intent.value, s.record.spec.workspace)
        for s in accepted
    )
    still = Counter(s.still.reason for s in accepted if s.still is not None)
    templates = core.templates.listed()
    waiting = sum(core.warm_pool.count(template.key) for template in templates)
    number, size = core.sandboxes.host_snapshots()
    names = ("phase", "intent", "workspace")
    return [
        *(
            Value(SANDBOXES, count, dict(zip(names, key, strict=True)))
            for key, count in phases.items()
        ),
        *(Value(STILL, count, {"reason": reason}) for reason, count in still.items()),
        Value(SET_ASIDE, len(core.sandboxes.set_aside), {}),
        Value(SANDBOX_LIMIT, sandbox_limit, {}),
        Value(COMMITTED, core.budget.committed_mib() * 2**20, {}),
        Value(MEMORY_LIMIT, memory_limit_mib * 2**20, {}),
        Value(ADDRESSES, core.addresses.left(), {}),
        Value(USERS, core.users.left(), {}),
        Value(WATCHERS, core.broadcaster.watchers(), {}),
        Value(TEMPLATES, len(templates), {}),
        Value(WAITING, waiting, {}),
        Value(SNAPSHOTS, number, {}),
        Value(SNAPSHOT_BYTES, size, {}),
    ]


def of_images(known: Sequence[KnownImage]) -> list[Value]:
    """What the image cache holds."""
    size = sum(image.stored_bytes for image in known)
    return [Value(IMAGES, len(known), {}), Value(IMAGE_BYTES, size, {})]


def of_disk(used: Mapping[str, int], free: int) -> list[Value]:
    """Bytes by folder of the state directory, and those that are left."""
    by_folder = (Value(DISK, size, {"folder": name}) for name, size in used.items())
    return [*by_folder, Value(DISK_FREE, free, {})]
