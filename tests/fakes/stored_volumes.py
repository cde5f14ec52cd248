"""Volumes on a World's disk, and who may open them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmdriver.model.plan import LaunchPlan


@dataclass
class StoredVolumes:
    """Survives a crash of the driver."""

    notes: dict[str, str] = field(default_factory=dict)
    """Id -> volume.json. It is there with its disk, or not at all."""
    content: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Id -> what was written to it, by offset."""
    sizes_mib: dict[str, int] = field(default_factory=dict)
    """Of its disk."""
    beside: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Such as are being made."""
    writers: dict[str, set[int]] = field(default_factory=dict)
    readers: dict[str, set[int]] = field(default_factory=dict)
    """Id -> numbers of the machines' users that may open it."""
    opened: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Domain -> what its QEMU has open; whether only to read."""

    roles: dict[str, dict[str, str]] = field(default_factory=dict)
    """Domain -> id of the volume that each of its disks is."""
    copies: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """File -> what is on that copy of a volume."""
    sealed: set[str] = field(default_factory=set)
    """Copies that nobody writes to any more."""
    mirrors: dict[str, dict[str, str]] = field(default_factory=dict)
    """Domain -> the file that each of its disks is being copied to."""
    uncopied: dict[str, int] = field(default_factory=dict)
    """Domain -> bytes."""
    backs: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Id -> what is to be on it again."""

    def qemu_ends(self, domain: str) -> None:
        """What it was copying stays as it was."""
        self.mirrors.pop(domain, None)

    def is_written(self, volume_id: str, running: set[str]) -> bool:
        """Whether one of these machines may write to it."""
        return any(self.opened.get(d, {}).get(volume_id) is False for d in running)

    def open_as(self, plan: LaunchPlan, running: set[str]) -> None:
        """The plan's QEMU opens its volumes. Nobody else writes to one of them."""
        assert plan.user is not None
        mine = {v.id: plan.disk(v.role).read_only for v in plan.volumes}
        for name, read_only in mine.items():
            assert name in self.notes, "a volume that is not there"
            allowed = self.readers if read_only else self.writers
            assert plan.user.uid in allowed.get(name, set()), "it may not open it"
            for domain in running - {plan.domain}:
                other = self.opened.get(domain, {}).get(name)
                assert other is None or (other and read_only), "two have one volume"
        self.opened[plan.domain] = mine
        self.roles[plan.domain] = {v.role: v.id for v in plan.volumes}
