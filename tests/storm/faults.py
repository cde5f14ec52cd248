"""What goes wrong in a storm. Each class of faults has a thread and a random generator of its own."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.storm.processes import helpers, machines, tell
from tests.storm.promises import Sandbox, Sandboxes
from tests.storm.stage import INSTANCE, Keeper, SmallDisk
from tests.storm.tally import Tally
from vmdriver.model.ids import domain_name

HOST_FAULTS = ("disk", "helpers")
"""Those that may make any sandbox fail; the others strike one."""


@dataclass
class Faults:
    """Every class; `names` are what --without takes."""

    keeper: Keeper
    disk: SmallDisk
    sandboxes: Sandboxes
    tally: Tally
    ended: threading.Event

    def classes(self) -> dict[str, tuple[float, Callable[[random.Random], None]]]:
        """Name -> mean pause in seconds, and the fault."""
        return {
            "driver": (8.0, self._end_driver),
            "qemu": (9.0, self._kill_qemu),
            "qemu-stop": (12.0, self._hang_qemu),
            "helpers": (7.0, self._kill_helper),
            "disk": (14.0, self._fill_disk),
        }

    def threads(self, seed: int, without: set[str]) -> list[threading.Thread]:
        return [
            threading.Thread(
                target=self._play, args=(name, mean_s, fault, seed), name=name
            )
            for name, (mean_s, fault) in self.classes().items()
            if name not in without
        ]

    def _play(
        self,
        name: str,
        mean_s: float,
        fault: Callable[[random.Random], None],
        seed: int,
    ) -> None:
        chance = random.Random(f"{seed} {name}")
        while not self.ended.wait(chance.uniform(0.2, 2 * mean_s)):
            try:
                fault(chance)
            except Exception as error:
                self.tally.broken(f"the storm's own {name} broke: {error!r}")

    def _end_driver(self, chance: random.Random) -> None:
        number = signal.SIGKILL if chance.random() < 0.7 else signal.SIGTERM
        pause_s = chance.choice((0, 0, 0.3, 1.5))
        self.tally.note(f"fault: driver gets {number.name}")
        self.tally.count(self.tally.kills, f"driver {number.name}")
        self.keeper.end(number)
        time.sleep(pause_s)
        self.keeper.start()
        self.tally.note("the next driver answers")

    def _machine(self, chance: random.Random) -> tuple[int, Sandbox | None] | None:
        found = sorted(machines(INSTANCE), key=lambda process: process.domain)
        if not found:
            return None
        process = chance.choice(found)
        for sandbox in self.sandboxes.every():
            if domain_name(INSTANCE, sandbox.id) == process.domain:
                return process.pid, sandbox
        return process.pid, None  # a template's, or one that waits

    def _kill_qemu(self, chance: random.Random) -> None:
        if (found := self._machine(chance)) is None:
            return
        pid, sandbox = found
        why = f"fault: QEMU {pid} is killed"
        if sandbox is not None:
            sandbox.machine_dies(why)
        self.tally.note(why, sandbox.id if sandbox else "")
        killed = tell(pid, signal.SIGKILL)
        if sandbox is not None:
            sandbox.machine_dies(why)
        if killed:
            whose = "QEMU" if sandbox is not None else "QEMU of nobody"
            self.tally.count(self.tally.kills, f"{whose} SIGKILL")

    def _hang_qemu(self, chance: random.Random) -> None:
        seconds = chance.uniform(0.5, 10)
        if (found := self._machine(chance)) is None:
            return
        pid, sandbox = found
        if sandbox is not None:
            sandbox.machine_dies(
                f"fault: QEMU {pid} is stopped"
            )  # a stop may have to be hard
        self.tally.note(
            f"fault: QEMU {pid} hangs for {seconds:.1f} s",
            sandbox.id if sandbox else "",
        )
        if tell(pid, signal.SIGSTOP):
            self.tally.count(self.tally.kills, "QEMU SIGSTOP")
            self.ended.wait(seconds)
            tell(pid, signal.SIGCONT)
            self.tally.note(f"QEMU {pid} goes on", sandbox.id if sandbox else "")

    def _kill_helper(self, chance: random.Random) -> None:
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline and not self.ended.is_set():
            driver = self.keeper.pid()
            found = helpers(driver) if driver is not None else []
            if found:
                process = chance.choice(sorted(found, key=lambda p: p.pid))
                self.tally.harms()
                if tell(process.pid, signal.SIGKILL):
                    name = "libvirt's probe" if process.is_probe else process.name
                    self.tally.count(self.tally.kills, f"helper {name}")
                    self.tally.note(f"fault: {name} ({process.pid}) is killed")
                return
            time.sleep(0.02)

    def _fill_disk(self, chance: random.Random) -> None:
        leave = chance.choice((0, 0, 4096, 2**20, 4 * 2**20))
        seconds = chance.uniform(0.5, 5)
        self.tally.note(
            f"fault: the disk is full but for {leave} bytes, for {seconds:.1f} s"
        )
        self.tally.count(self.tally.kills, "disk filled")
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended.is_set():
            self.disk.fill(
                leave
            )  # again: what was deleted meanwhile is no space to rely on
            time.sleep(0.2)
        self.disk.empty()
        self.tally.harms()
        self.tally.note("the disk has space again")
