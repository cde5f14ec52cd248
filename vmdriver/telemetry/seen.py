"""One look at a driver, as numbers: what is, not what happened (lifecycle/engine/measures.py)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vmdriver.lifecycle.ports.images import KnownImage
from vmdriver.model.phase import Phase
from vmdriver.telemetry.shown import Shown
from vmdriver.wiring import Core

Attributes = Mapping[str, str]
MOST_IMAGES = 20
"""Images that have series of their own."""
MOST_WORKSPACES = 100
OTHERS = "other"
"""Stands for all workspaces but those that have most."""
PASSING = (
    *(Phase.NEW, Phase.LAUNCHING, Phase.RESUMING, Phase.SUSPENDING),
    *(Phase.STOPPING, Phase.FAILING, Phase.DELETING),
)
"""Phases that no sandbox stays in."""

READY = Shown(
    "vmdriver.ready",
    "{driver}",
    "1: what an earlier driver has left is taken up; 0: not yet, and nothing of sandboxes is shown",
)
SANDBOXES = Shown(
    "vmdriver.sandboxes",
    "{sandbox}",
    f"sandboxes, by phase; `other` is all workspaces but the {MOST_WORKSPACES} that have most",
    labels=("phase", "intent", "workspace"),
)
PHASE_AGE = Shown(
    "vmdriver.phase.age",
    "s",
    "how long one has been in this phase, which none stays in, the longest; since this driver "
    "knows it",
    labels=("phase",),
)
STILL = Shown(
    "vmdriver.sandboxes.still",
    "{sandbox}",
    "machines that stand still, by reason",
    labels=("reason",),
)
SET_ASIDE = Shown(
    "vmdriver.sandboxes.unreadable", "{sandbox}", "sandboxes that cannot be read"
)
SANDBOX_LIMIT = Shown("vmdriver.sandboxes.limit", "{sandbox}", "max_sandboxes")
COMMITTED = Shown(
    "vmdriver.memory.committed", "By", "memory of machines that are meant to run"
)
MEMORY_LIMIT = Shown("vmdriver.memory.limit", "By", "max_committed_mem_mib")
HOST_MEMORY = Shown("vmdriver.host.memory", "By", "memory of the host")
HOST_MEMORY_AVAILABLE = Shown(
    "vmdriver.host.memory.available", "By", "what of it can be had without swapping"
)
ADDRESSES = Shown(
    "vmdriver.addresses.left", "{block}", "blocks of address_pool that nobody has"
)
ADDRESS_LIMIT = Shown("vmdriver.addresses.limit", "{block}", "blocks of address_pool")
USERS = Shown(
    "vmdriver.machine_uids.left", "{user}", "numbers of machine_uids that nobody has"
)
USER_LIMIT = Shown("vmdriver.machine_uids.limit", "{user}", "numbers of machine_uids")
DEVICES = Shown(
    "vmdriver.devices.held", "{device}", "devices of the host that machines have"
)
DEVICE_LIMIT = Shown(
    "vmdriver.devices.limit", "{device}", "devices of passthrough_devices"
)
READERS = Shown(
    "vmdriver.host_folders.readers",
    "{program}",
    "programs that read folders of the host for machines",
)
READERS_MEMORY = Shown(
    "vmdriver.host_folders.memory",
    "By",
    "host memory of these, which machines' memory is not a part of; what is shared is divided",
)
WATCHERS = Shown("vmdriver.watchers", "{watcher}", "streams of WatchSandboxes")
TEMPLATES = Shown("vmdriver.templates", "{template}", "templates that can be used")
WAITING = Shown("vmdriver.warm_pool.waiting", "{machine}", "machines of the warm pool")
WANTED = Shown(
    "vmdriver.warm_pool.wanted", "{machine}", "machines that should wait in it"
)
WAITING_MEMORY = Shown(
    "vmdriver.warm_pool.memory", "By", "host memory of those that wait"
)
SNAPSHOTS = Shown("vmdriver.snapshots", "{snapshot}", "snapshots of all sandboxes")
SNAPSHOT_BYTES = Shown("vmdriver.snapshots.size", "By", "what they take on disk")
VOLUMES = Shown(
    "vmdriver.volumes",
    "{volume}",
    f"volumes, by workspace; `other` is all but the {MOST_WORKSPACES} whose are largest",
    labels=("workspace",),
)
VOLUME_BYTES = Shown(
    "vmdriver.volumes.size",
    "By",
    "sizes that they have for guests; what they take on disk is vmdriver.disk.used",
    labels=("workspace",),
)
VOLUME_LIMIT = Shown("vmdriver.volumes.limit", "By", "max_volumes_mib")
VOLUMES_UNREADABLE = Shown(
    "vmdriver.volumes.unreadable", "{volume}", "volumes that cannot be read"
)
IMAGES = Shown("vmdriver.images", "{image}", "images that are prepared")
IMAGE_BYTES = Shown("vmdriver.images.size", "By", "what they take on disk")
IMAGE_SIZE = Shown(
    "vmdriver.image.size",
    "By",
    f"what one of them takes on disk, of each of the {MOST_IMAGES} largest",
    labels=("image", "digest"),
)
DISK = Shown(
    "vmdriver.disk.used",
    "By",
    "what state_dir holds on disk, by its folders; kept memory of sandboxes apart",
    labels=("folder",),
)
DISK_FREE = Shown("vmdriver.disk.free", "By", "space left on the disk of state_dir")
DISK_SIZE = Shown("vmdriver.disk.size", "By", "size of the disk of state_dir")


@dataclass(frozen=True)
class Value:
    """One of a metric's."""

    shown: Shown
    number: float
    attributes: Attributes


def of_begin(*, ready: bool) -> list[Value]:
    """Whether it has begun."""
    return [Value(READY, int(ready), {})]


def of_core(core: Core, sandbox_limit: int, memory_limit_mib: int) -> list[Value]:
    """What the core knows without asking anybody. In the loop's thread."""
    accepted = [worker.sandbox for worker in core.sandboxes.accepted()]
    still = Counter(s.still.reason for s in accepted if s.still is not None)
    number, size = core.sandboxes.host_snapshots()
    alone = {
        SET_ASIDE: len(core.sandboxes.set_aside),
        SANDBOX_LIMIT: sandbox_limit,
        COMMITTED: core.budget.committed_mib() * 2**20,
        MEMORY_LIMIT: memory_limit_mib * 2**20,
        ADDRESSES: core.addresses.left(),
        ADDRESS_LIMIT: core.addresses.size,
        USERS: core.users.left(),
        USER_LIMIT: len(core.users.uids.numbers),
        DEVICES: len(core.devices.held()),
        DEVICE_LIMIT: len(core.devices.allowed),
        WATCHERS: core.broadcaster.watchers(),
        SNAPSHOTS: number,
        SNAPSHOT_BYTES: size,
        VOLUME_LIMIT: core.volumes.limit_mib * 2**20,
        VOLUMES_UNREADABLE: len(core.volumes.unreadable),
    }
    return [
        *_of_phases(core),
        *(Value(STILL, count, {"reason": reason}) for reason, count in still.items()),
        *(Value(shown, number, {}) for shown, number in alone.items()),
        *_of_templates(core),
        *_of_volumes(core),
    ]


def _of_phases(core: Core) -> list[Value]:
    accepted = [worker.sandbox for worker in core.sandboxes.accepted()]
    shown = _most(Counter(s.record.spec.workspace for s in accepted))
    phases = Counter(
        (s.record.phase.value, s.record.intent.value, shown(s.record.spec.workspace))
        for s in accepted
    )
    ages, now = dict.fromkeys(PASSING, 0.0), time.monotonic()
    for sandbox in accepted:
        phase = sandbox.record.phase
        if phase in ages:
            ages[phase] = max(ages[phase], now - sandbox.phase_since)
    return [
        *(
            Value(SANDBOXES, count, dict(zip(SANDBOXES.labels, key, strict=True)))
            for key, count in phases.items()
        ),
        *(Value(PHASE_AGE, age, {"phase": phase.value}) for phase, age in ages.items()),
    ]


def _of_templates(core: Core) -> list[Value]:
    templates, pool = core.templates.listed(), core.warm_pool
    waiting = sum(pool.count(template.key) for template in templates)
    return [
        Value(TEMPLATES, len(templates), {}),
        Value(WAITING, waiting, {}),
        Value(WANTED, pool.most * len(templates), {}),
        Value(WAITING_MEMORY, pool.held_mib() * 2**20, {}),
    ]


def _of_volumes(core: Core) -> list[Value]:
    sizes = core.volumes.sizes_mib()
    shown = _most(sizes)
    number = Counter(shown(volume.workspace) for volume in core.volumes.all())
    together = Counter[str]()
    for name, mib in sizes.items():
        together[shown(name)] += mib * 2**20
    return [
        *(Value(VOLUMES, count, {"workspace": name}) for name, count in number.items()),
        *(
            Value(VOLUME_BYTES, size, {"workspace": name})
            for name, size in together.items()
        ),
    ]


def _most(sizes: Mapping[str, int]) -> Callable[[str], str]:
    """What a workspace is called in series: there may be any number of them."""
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_WORKSPACES]
    own = frozenset(largest)
    return lambda name: name if name in own else OTHERS


def of_images(known: Sequence[KnownImage]) -> list[Value]:
    """What the image cache holds. One that several files are of counts once, with all of them."""
    size = sum(image.stored_bytes for image in known)
    sizes: Counter[tuple[str, str]] = Counter()
    for image in known:
        name = image.references[0] if image.references else ""
        sizes[name, image.disk.digest] += image.stored_bytes
    return [
        Value(IMAGES, len(known), {}),
        Value(IMAGE_BYTES, size, {}),
        *(
            Value(IMAGE_SIZE, stored, dict(zip(IMAGE_SIZE.labels, key, strict=True)))
            for key, stored in sizes.most_common(MOST_IMAGES)
        ),
    ]


def of_disk(used: Mapping[str, int], free: int, whole: int) -> list[Value]:
    """Bytes by folder of the state directory, those that are left, and all of its disk."""
    by_folder = (Value(DISK, size, {"folder": name}) for name, size in used.items())
    return [*by_folder, Value(DISK_FREE, free, {}), Value(DISK_SIZE, whole, {})]


def of_host(memory: int, available: int) -> list[Value]:
    """Bytes of its memory."""
    both = {HOST_MEMORY: memory, HOST_MEMORY_AVAILABLE: available}
    return [Value(shown, number, {}) for shown, number in both.items()]


def of_folders(readers: int, memory: int) -> list[Value]:
    """What reads folders of the host, and its bytes."""
    return [Value(READERS, readers, {}), Value(READERS_MEMORY, memory, {})]
