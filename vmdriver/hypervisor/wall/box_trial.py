"""Finds out whether QEMU can be begun in a box on this host: by doing it, as QEMU's user."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmdriver.errors import CommandError, DriverError, StorageError
from vmdriver.host import facts, process
from vmdriver.host.packages import way_to
from vmdriver.host.threads import Threads
from vmdriver.hypervisor.wall.box import BOX_PARTS, Box
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import Lack, Offer, WallPart

_log = logging.getLogger(__name__)
DAEMON_SETTINGS = Path("/etc/libvirt/qemu.conf")
_DEADLINE_S = 20.0
_FILTER = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""As libvirt 9.0 renders seccomp_sandbox = 1: all that QEMU has."""
_NO_BOX = (
    "apt-get install bubblewrap; users must be allowed to make user namespaces "
    "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"
)
_NO_PROGRAM = (
    "have QEMU's user execute programs in the state directory (mount it without noexec)"
)
_UNFILTERED = re.compile(r"^\s*seccomp_sandbox\s*=\s*0", re.MULTILINE)


@dataclass(eq=False)
class BoxTrial:
    """Implements lifecycle.ports.host.WallSource for the box and what is set with it. `name`: of a
    domain that is never defined, `owner`: whom it would run as. `daemon_settings`: of a libvirt
    that is not ours. While a part is lacking, every question tries again.
    """

    boxes: Boxes
    files: Threads
    name: str
    owner: Ownership
    daemon_settings: Path | None = None
    _offer: Offer | None = field(default=None, init=False)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def offer(self, _plan: LaunchPlan | None) -> Offer:
        """The same for every plan."""
        async with self._one_at_a_time:
            if self._offer is None or self._offer.lacks:
                self._offer = await self._find_out()
            return self._offer

    async def _find_out(self) -> Offer:
        """With the program that is made here, if it can be; else with the shell's."""
        try:
            await self.boxes.compile()
        except (DriverError, OSError) as error:
            _log.info("QEMU is begun by a program of the shell's: %s", error)
        offer = await self._found_out()
        if self.boxes.compiled is not None and offer.lacks:
            self.boxes.compiled = None
            offer = await self._found_out()
        return offer

    async def _found_out(self) -> Offer:
        wanted, lacks = list(BOX_PARTS), []
        if self._unfiltered():
            why = f"{self.daemon_settings} has seccomp_sandbox = 0"
            way_out = "remove that line and restart libvirtd"
            wanted.remove("seccomp")
            lacks.append(Lack("seccomp", why, way_out))
        try:
            await self._boxed(tuple(wanted))
        except (DriverError, OSError) as error:
            why, without = f"a trial failed: {error}", wanted.copy()
            without.remove("box")
            try:
                await self._begin(tuple(without))
            except (DriverError, OSError) as worse:
                # Not the box is in the way: QEMU begins without one as little.
                way_out = _way_out(worse)
                lacks += [Lack(part, why, way_out) for part in wanted]
                without = []
            else:
                lacks.append(Lack("box", why, _NO_BOX))
            wanted = without
        self.boxes.parts = tuple(wanted)
        return Offer(self.boxes.parts, tuple(lacks))

    def _unfiltered(self) -> bool:
        """Whether libvirt has QEMU run without a filter; left to itself it does not."""
        try:
            text = self.daemon_settings.read_text() if self.daemon_settings else ""
        except OSError:
            return False
        return _UNFILTERED.search(text) is not None

    async def _boxed(self, parts: tuple[WallPart, ...]) -> None:
        try:
            await self._begin(parts)
        except CommandError:
            if not self.boxes.ground.no_nesting:
                raise
            # Where /proc/sys cannot be written, as in containers. QEMU's own filter then stands
            # alone before another user namespace.
            self.boxes.ground = replace(self.boxes.ground, no_nesting=False)
            try:
                await self._begin(parts)
            except CommandError:
                self.boxes.ground = replace(self.boxes.ground, no_nesting=True)
                raise

    async def _begin(self, parts: tuple[WallPart, ...]) -> None:
        """QEMU, as libvirt begins it, for as long as it takes to say its version."""
        owner, name = self.owner, self.name
        emulator = _emulator()
        wanted = Box(memory_mib=1024, file_bytes=2**30, parts=parts)
        program = await self.files.run(self.boxes.make, name, emulator, wanted)
        words = ("-name", f"guest={name},debug-threads=on", "-sandbox", _FILTER)
        try:
            await process.run(
                [
                    *("setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}"),
                    *("--clear-groups", program, *words, "-version"),
                ],
                deadline_s=_DEADLINE_S,
                tries=2,
            )
        finally:
            await self.files.run(self.boxes.remove, name)


def _emulator() -> str:
    return f"/usr/bin/qemu-system-{facts.machine_architecture()}"


def _way_out(error: DriverError | OSError) -> str:
    """What helps where QEMU cannot be begun at all."""
    if not Path(_emulator()).exists():
        return way_to(_emulator())
    if isinstance(error, StorageError):
        return error.resolution or "free space in the state directory"
    return _NO_PROGRAM
