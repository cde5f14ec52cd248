"""A cgroup for each machine (cgroup v2), with the kernel's own limits of memory, processes, CPU
and I/O.

It is made, limits and all, before its machine, which is put into it when libvirt has begun it, and
removed after it. Its name is the domain's, so whoever ends the domain finds it, whoever made it:
the ledger's entry of the machine answers for it too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.wall import cgroup_limits
from vmdriver.hypervisor.wall.cgroup_place import Place
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import Offer

_log = logging.getLogger(__name__)
_OURS = "driver"
"""The cgroup that the driver itself goes to: no processes may be where limits are handed out."""
_LOOK_AGAIN_S = 0.01
_MOVES = 16


class Tree:
    """The kernel's files."""

    def make(self, folder: Path) -> None:
        """Fine with what is there."""
        folder.mkdir(mode=0o755, exist_ok=True)

    def remove(self, folder: Path) -> None:
        """OSError: EBUSY while there are processes."""
        folder.rmdir()

    def read(self, file: Path) -> str:
        """What the kernel says."""
        return file.read_text()

    def write(self, file: Path, text: str) -> None:
        """In one call, into a file that is there."""
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def folders(self, folder: Path) -> list[Path]:
        """The cgroups in it."""
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]


@dataclass(eq=False)
class Cgroups:
    """Of the machines of one driver. Blocking; HypervisorError with the file at fault."""

    place: Place
    instance: str
    disk: str
    """The disk that machines' files are on, as "8:0"; "" where it is not known."""
    run: Path
    """Where libvirt notes the process ids of machines."""
    tree: Tree = field(default_factory=Tree)
    proc: Path = Path("/proc")
    empty_s: float = 5.0
    """For the processes of a machine that ends to end."""
    _ready: frozenset[str] = frozenset()

    @property
    def problem(self) -> str:
        """Why machines have none; "" where they have."""
        return "" if self._ready else self.place.why or "it is not prepared"

    @property
    def controllers(self) -> frozenset[str]:
        """Those whose limits machines get; none where they have no cgroup."""
        return self._ready

    async def offer(self, _plan: LaunchPlan | None) -> Offer:
        """A ports.WallSource. Nothing is refused where there is no place: `doctor` says so."""
        return Offer() if self.place.folder is None else Offer(("cgroup",))

    @property
    def _folder(self) -> Path | None:
        return self.place.folder and self.place.folder / self.instance

    def prepare(self) -> None:
        """Have a place for machines' cgroups, and remove those that machines of an earlier driver
        left. Where that cannot be, machines have none, and `problem` says why.
        """
        base, folder, tree = self.place.folder, self._folder, self.tree
        if base is None or folder is None:
            _log.info("machines have no cgroups of their own: %s", self.place.why)
            return
        try:
            there = frozenset(tree.read(base / "cgroup.controllers").split())
            wanted = [c for c in cgroup_limits.WANTED if c in there]
            if not self.place.is_root:
                self._make_room(base)
            self._hand_out(base, wanted)
            tree.make(folder)
            self._hand_out(folder, wanted)
            for left in tree.folders(folder):
                self._remove_empty(left)
            self._ready = frozenset(wanted)
        except OSError as error:
            why = f"{error.filename or base}: {error.strerror or error}"
            self.place = Place(None, why)
            _log.warning("machines have no cgroups of their own: %s", why)

    def _make_room(self, base: Path) -> None:
        """Whatever is in the place itself, this driver among it, goes to a cgroup beside."""
        own, tree = base / _OURS, self.tree
        for _ in range(_MOVES):
            found = tree.read(base / "cgroup.procs").split()
            if not found:
                return
            tree.make(own)
            for pid in found:
                try:
                    tree.write(own / "cgroup.procs", pid)
                except OSError as error:
                    if error.errno != errno.ESRCH:  # it has ended meanwhile
                        raise

    def _hand_out(self, folder: Path, controllers: list[str]) -> None:
        there = self.tree.read(folder / "cgroup.subtree_control").split()
        more = [f"+{c}" for c in controllers if c not in there]
        if more:
            self.tree.write(folder / "cgroup.subtree_control", " ".join(more))

    def make(self, plan: LaunchPlan) -> None:
        """Have the machine's, with the plan's limits; one that is there is changed."""
        folder = self._of(plan.domain)
        if folder is None:
            raise HypervisorError(f"no cgroup for {plan.domain}: {self.problem}")
        try:
            self.tree.make(folder)
            limits = cgroup_limits.files(plan, self._ready, self.disk)
            for name, text in limits.items():
                self._limit(folder / name, text)
        except OSError as error:
            raise _failed(plan.domain, error) from error

    def _limit(self, file: Path, text: str) -> None:
        try:
            self.tree.write(file, text)
        except OSError as error:
            if file.name != "io.max":
                raise
            # Not every disk can be limited; QEMU limits what it asks of it all the same.
            _log.warning("%s takes no %s: %s", file, text, error.strerror or error)

    def begin(
        self, plan: LaunchPlan, start: Callable[[], object], end: Callable[[], object]
    ) -> None:
        """Have `start` begin the plan's machine, and put it into its cgroup, if it is to have one.
        If that is not possible, `end` ends it.
        """
        if "cgroup" not in plan.wall:
            start()
            return
        self.make(plan)
        start()
        try:
            self._enter(plan.domain)
        except BaseException:
            end()
            raise

    def _enter(self, domain: str) -> None:
        folder = self._of(domain)
        if folder is None:
            raise HypervisorError(f"no cgroup for {domain}: {self.problem}")
        try:
            first = int((self.run / f"{domain}.pid").read_text())
            todo, seen = [first], set[int]()
            while todo:  # parents first: what they begin from then on is in it already
                pid = todo.pop()
                if pid not in seen:
                    seen.add(pid)
                    self._move(folder, pid, must=pid == first)
                    todo += self._children(pid)
        except (OSError, ValueError) as error:
            raise _failed(domain, error) from error

    def _move(self, folder: Path, pid: int, *, must: bool) -> None:
        try:
            self.tree.write(folder / "cgroup.procs", str(pid))
        except OSError as error:
            if must or error.errno != errno.ESRCH:
                raise

    def _children(self, pid: int) -> list[int]:
        found: list[int] = []
        for file in (self.proc / str(pid) / "task").glob("*/children"):
            # A thread may end between the list and the look; its children are its process's then.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, file.read_text().split())
        return found

    def remove(self, domain: str) -> None:
        """End what is left in it, and remove it. Fine where there is none."""
        folder = self._of(domain)
        if folder is None:
            return
        deadline = time.monotonic() + self.empty_s
        while not self._remove_empty(folder):
            try:
                self.tree.write(folder / "cgroup.kill", "1")
            except FileNotFoundError:
                pass  # a kernel before 5.14; or gone meanwhile, which the next look tells
            except OSError as error:
                raise _failed(domain, error) from error
            if time.monotonic() > deadline:
                raise HypervisorError(f"processes of {domain} do not end")
            time.sleep(_LOOK_AGAIN_S)

    def _remove_empty(self, folder: Path) -> bool:
        """False: there are processes in it."""
        try:
            self.tree.remove(folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise _failed(folder.name, error) from error
        return True

    def _of(self, domain: str) -> Path | None:
        folder = self._folder
        return folder / domain if folder is not None and self._ready else None


NO_CGROUPS = Cgroups(Place(None, "nobody asked for any"), "", "", Path())
"""Machines have none."""


def device_of(folder: Path) -> str:
    """The whole disk that a folder is on, as "8:0"; "" where there is none that could be limited
    (a file system on several, or in memory).
    """
    try:
        number = folder.stat().st_dev
        major, minor = os.major(number), os.minor(number)
        block = Path(f"/sys/dev/block/{major}:{minor}").resolve(strict=True)
        disk = block.parent if (block / "partition").exists() else block
        return (disk / "dev").read_text().strip()
    except OSError:
        return ""


def _failed(domain: str, error: OSError | ValueError) -> HypervisorError:
    why = error.strerror if isinstance(error, OSError) else None
    return HypervisorError(
        f"the cgroup of {domain} cannot be changed: {why or error}", detail=str(error)
    )
