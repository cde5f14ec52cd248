"""Volumes of this driver: which there are, who has which, and how a machine comes to its own.

A volume's own note says who has it, and a sandbox's ledger does. Both count only together: a note
that could not be written anew, as the disk was full, keeps nobody out; and one of a sandbox that
cannot be read does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

from vmdriver.errors import AlreadyExists, Exhausted, InvalidRequest, NotFound, Refused
from vmdriver.host.retry import tried
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.lifecycle.engine.resource import VOLUMES, Given
from vmdriver.lifecycle.launch.resources import MachineSource, Part
from vmdriver.lifecycle.ports.paths import BootChoice
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.volumes import VolumeStore
from vmdriver.model.plan import VOLUME_ROLES, Disk, LaunchPlan, MountedVolume
from vmdriver.model.record import utc_now
from vmdriver.model.runs import Reason
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.volume import PATH, Volume, Wish, volume_id, wishes_of

_log = logging.getLogger(__name__)
_READS = frozenset({"exported", "copied"})
"""What is done with a volume that may be read meanwhile."""
Holds = Callable[[str, str], bool]
"""Whether a sandbox, by id, has a volume, by id: also one that cannot be read, and may."""


class Volumes:
    """All of one driver. `open` must have returned before anything else is asked."""

    def __init__(self, *, store: VolumeStore, settings: Settings, holds: Holds) -> None:
        self.store = store
        self._settings, self._holds = settings, holds
        self._known: dict[str, Volume] = {}
        self._begun: dict[str, Volume] = {}
        """Such as are being made: they count, and nobody has them."""
        self._busy: dict[str, str] = {}
        """Ids of those that something is being done with, and what."""
        self.unreadable: Mapping[str, str] = {}
        self.changing = asyncio.Lock()
        """Held while one is attached, let go or changed: nobody decides on what is old."""

    async def open(self) -> None:
        """Find out which there are, and remove what of others is left."""
        await self.store.tidy()
        await self.look()
        for name, problem in self.unreadable.items():
            _log.error("volume %s is left alone: %s", name, problem)

    async def look(self) -> None:
        """Find out which there are. For who changes nothing, this is enough."""
        found, self.unreadable = await self.store.load_all()
        self._known = {volume.id: volume for volume in found}

    # --- looks

    def all(self) -> list[Volume]:
        """By workspace, then name."""
        return sorted(self._known.values(), key=lambda v: (v.workspace, v.name))

    def find(self, workspace: str, name: str) -> Volume:
        """NotFound; Refused where it cannot be read."""
        self._check_readable(volume_id(workspace, name), name)
        found = self._known.get(volume_id(workspace, name))
        if found is None:
            where = f"workspace {workspace!r}" if workspace else "no workspace"
            raise NotFound(f"there is no volume {name!r} in {where}")
        return found

    def holders(self, volume: Volume) -> dict[str, bool]:
        """Ids of sandboxes that have it; whether only to read."""
        return {
            name: read_only
            for name, read_only in volume.attached.items()
            if self._holds(name, volume.id)
        }

    @property
    def limit_mib(self) -> int:
        """Most that all may have together."""
        return self._settings.max_volumes_mib

    def sizes_mib(self) -> Counter[str]:
        """By workspace, those among them that are being made."""
        sizes: Counter[str] = Counter()
        for volume in {**self._begun, **self._known}.values():
            sizes[volume.workspace] += volume.size_mib
        return sizes

    # --- what a request may have

    def check(self, spec: SandboxSpec) -> None:
        """Whether a sandbox of this spec could have its volumes now. InvalidRequest, NotFound,
        Refused, Exhausted.
        """
        more = 0
        for wish in wishes_of(spec):
            known = self._known.get(volume_id(spec.workspace, wish.name))
            if known is None:
                more += self._new(spec.workspace, wish).size_mib
            else:
                _check_fits(known, wish)
                self.check_free(known, spec.id, read_only=wish.read_only)
        if more:
            self.check_room(spec.workspace, more)

    def _new(self, workspace: str, wish: Wish) -> Volume:
        self._check_readable(volume_id(workspace, wish.name), wish.name)
        if wish.read_only:
            _refuse_missing(wish.name, read_only=True)
        if wish.size_mib is None:
            raise InvalidRequest(
                PATH,
                f"there is no volume {wish.name!r} yet",
                resolution="say its size_mib, and it is made",
            )
        return self.new(workspace, wish.name, wish.size_mib)

    @staticmethod
    def new(workspace: str, name: str, size_mib: int) -> Volume:
        """One that is not there yet."""
        return Volume(
            workspace=workspace, name=name, size_mib=size_mib, created_at=utc_now()
        )

    def _check_readable(self, name: str, shown: str) -> None:
        if name in self.unreadable:
            raise Refused(
                f"volume {shown!r} cannot be read: {self.unreadable[name]}",
                reason="VolumeUnreadable",
                resolution="repair its volume.json, and restart the driver",
            )

    def check_free(self, volume: Volume, owner: str, *, read_only: bool) -> None:
        """Refused unless that sandbox may have it now: one writes, or many read."""
        if not (read_only and self._busy.get(volume.id) in _READS):
            self.check_idle(volume)
        for name, reads in self.holders(volume).items():
            if name != owner and not (reads and read_only):
                how = "reads" if reads else "writes"
                raise Refused(
                    f"volume {volume.shown!r} is attached to sandbox {name}, which {how} it",
                    reason="VolumeInUse",
                    resolution="stop or delete that one first (suspended, it keeps its volumes); "
                    "several may have it with read_only",
                )

    def check_idle(self, volume: Volume) -> None:
        """Refused while something is being done with it."""
        if volume.id in self._busy:
            _refuse_busy(volume, self._busy[volume.id])

    def check_room(self, workspace: str, more_mib: int) -> None:
        """Exhausted where so much more is above what volumes may have."""
        sizes, settings = self.sizes_mib(), self._settings
        for name, have, most in (
            (
                "max_workspace_volumes_mib",
                sizes[workspace],
                settings.max_workspace_volumes_mib,
            ),
            ("max_volumes_mib", sizes.total(), settings.max_volumes_mib),
        ):
            if have + more_mib > most:
                raise Exhausted(
                    f"{name}: volumes of {have} MiB are there, {more_mib} MiB more are above "
                    f"{most}",
                    reason="VolumeQuota",
                    resolution="remove some (vmdriver volume rm), or raise the limit",
                )

    # --- changes

    @contextmanager
    def busy(self, volume: Volume, doing: str) -> Iterator[None]:
        """While something takes long: nobody does something else with it, or gets it, but to read
        what is only read meanwhile.
        """
        self.check_idle(volume)
        self._busy[volume.id] = doing
        try:
            yield
        finally:
            del self._busy[volume.id]

    async def make(self, volume: Volume, filled: Callable[[], Awaitable[None]]) -> None:
        """Have one that is not there yet be there, when what is to be on it lies beside. Its place
        is taken meanwhile. AlreadyExists, Refused, Exhausted, HostError: there is none.
        """
        self._check_readable(volume.id, volume.name)
        if volume.id in self._known:
            raise AlreadyExists(
                f"volume {volume.shown!r} exists", reason="VolumeExists"
            )
        if volume.id in self._begun:
            _refuse_busy(volume, "made")
        self.check_room(volume.workspace, volume.size_mib)
        self._begun[volume.id] = volume
        try:
            await filled()
            await finished(self._publish(volume))
        except BaseException:
            what = f"volume {volume.shown}"
            await finished(tried(_log, self.store.discard(volume), what))
            raise
        finally:
            del self._begun[volume.id]
        _log.info("volume %s of %d MiB was made", volume.shown, volume.size_mib)

    async def _publish(self, volume: Volume) -> None:
        await self.store.publish(volume)
        self._known[volume.id] = volume

    def removed(self, volume: Volume) -> None:
        """It is not there any more."""
        self._known.pop(volume.id, None)
        _log.info("volume %s was removed", volume.shown)

    async def note(self, volume: Volume) -> None:
        """Change what is known of it, on disk first. StorageError: it is as it was."""

        async def noted() -> None:
            await self.store.note(volume)
            self._known[volume.id] = volume

        await finished(noted())

    # --- machines

    def disks(
        self, spec: SandboxSpec, boot: BootChoice, path_of: Callable[[str], str]
    ) -> tuple[tuple[MountedVolume, Disk], ...]:
        """What its machine gets, as of now. Refused where its guest would not mount them: what is
        written there would lie on the root disk.
        """
        wishes = wishes_of(spec)
        if wishes and "volumes" not in boot.knows:
            raise Refused(
                "the guests' boot files are of an earlier release, and know no volumes",
                reason="VolumesUnknown",
                resolution="upgrade vmdriver's package (in a checkout: images/build-boot-files), "
                "and start the sandbox again",
            )
        found = []
        for role, wish in zip(VOLUME_ROLES, wishes, strict=False):
            name = volume_id(spec.workspace, wish.name)
            known = self._known.get(name) or self._new(spec.workspace, wish)
            mounted = MountedVolume(
                role=role,
                workspace=spec.workspace,
                name=wish.name,
                mount=wish.mount,
                may_be_made=wish.size_mib is not None and not wish.read_only,
            )
            disk = Disk(
                role=role,
                path=path_of(name),
                format="raw",
                read_only=wish.read_only,
                size_mib=known.size_mib,
            )
            found.append((mounted, disk))
        return tuple(found)

    async def attach(self, source: MachineSource) -> None:
        """Have the plan's be its machine's; make those that are not there yet. DriverError: there
        may be some of them.
        """
        plan = source.plan
        for mounted in plan.volumes:
            if mounted.id not in self._known:
                disk = plan.disk(mounted.role)
                if not mounted.may_be_made:  # it was removed after the plan was made
                    _refuse_missing(mounted.name, read_only=disk.read_only)
                fresh = self.new(mounted.workspace, mounted.name, disk.size_mib)
                await self.make(fresh, partial(self.store.make, fresh))
            async with self.changing:
                await self._attach(plan, mounted)

    async def _attach(self, plan: LaunchPlan, mounted: MountedVolume) -> None:
        disk, owner = plan.disk(mounted.role), plan.sandbox_id
        known = self.find(mounted.workspace, mounted.name)
        self.check_free(known, owner, read_only=disk.read_only)
        _check_size(known, disk.size_mib)  # its box lets nobody write beyond
        held = known.model_copy(update={"attached": self.holders(known)})
        await self.note(held.with_sandbox(owner, read_only=disk.read_only))
        await self.store.let_in(known, plan.user, read_only=disk.read_only)

    async def hold(self, volumes: Iterable[Volume], owner: str) -> None:
        """Have them be that sandbox's alone, by its ledger's word, which has their ids: all or
        none. Refused, NotFound, StorageError.
        """
        async with self.changing:
            present = []
            for volume in volumes:
                present.append(known := self.find(volume.workspace, volume.name))
                _check_size(known, volume.size_mib)
            for volume in present:
                self.check_free(volume, owner, read_only=False)
            for volume in present:
                held = volume.model_copy(update={"attached": self.holders(volume)})
                await self.note(held.with_sandbox(owner, read_only=False))

    async def release(self, given: Given) -> None:
        """That a note cannot be written keeps nobody: the ledger says that it is over."""
        user = int(given["uid"]) if given["uid"] else None
        for name in given["ids"].split():
            async with self.changing:
                await self.store.take_back(name, user)
                await self._let_go(name, given.owner)

    async def let_go(self, volume_id: str, owner: str) -> None:
        """After `hold`. That a note cannot be written keeps nobody."""
        async with self.changing:
            await self._let_go(volume_id, owner)

    async def _let_go(self, volume_id: str, owner: str) -> None:
        known = self._known.get(volume_id)
        if known is not None and owner in known.attached:
            left = known.without_sandbox(owner)
            self._known[volume_id] = left
            await tried(_log, self.store.note(left), f"volume {left.shown}")


def _refuse_missing(name: str, *, read_only: bool) -> NoReturn:
    if read_only:
        text = f"there is no volume {name!r} to read"
        way_out = "have a sandbox write it first"
    else:
        text = f"there is no volume {name!r} any more"
        way_out = "say its size_mib, and an empty one is made"
    raise NotFound(
        f"{PATH}: {text}",
        reason="VolumeMissing",
        resolution=f"{way_out}; or import it (vmdriver volume import)",
    )


def _check_fits(volume: Volume, wish: Wish) -> None:
    if wish.size_mib is not None and wish.size_mib > volume.size_mib:
        raise Refused(
            f"{PATH}: volume {volume.shown!r} has {volume.size_mib} MiB, not "
            f"{wish.size_mib}",
            reason="VolumeTooSmall",
            resolution="vmdriver volume grow makes it larger; or ask for no size_mib",
        )


def _check_size(volume: Volume, planned_mib: int) -> None:
    if volume.size_mib != planned_mib:
        raise Refused(
            f"volume {volume.shown!r} was made larger, or anew, meanwhile",
            reason="VolumeBusy",
            resolution="start the sandbox again",
        )


def _refuse_busy(volume: Volume, doing: str) -> NoReturn:
    raise Refused(
        f"volume {volume.shown!r} is being {doing}",
        reason="VolumeBusy",
        resolution="try again when that has ended",
    )


def volumes_part(volumes: Volumes) -> Part:
    """A machine's volumes: from before it is there until neither it nor memory of it is."""

    def data(source: MachineSource) -> Mapping[str, str]:
        plan = source.plan
        return {
            "ids": " ".join(volume.id for volume in plan.volumes),
            "uid": str(plan.user.uid) if plan.user else "",
        }

    return Part(
        VOLUMES,
        ("ids", "uid"),
        scope=Scope.ATTACHED,
        blame=Reason.GUEST_PREPARE_FAILED,
        data=data,
        acquire=volumes.attach,
        release=volumes.release,
        may_hang=True,
        applies=lambda source: bool(source.plan.volumes),
    )
