"""Chooses KVM only after a guest has really booted on it.

/dev/kvm may be there, open, and useless: under some nested hypervisors a stock kernel never
reaches user space while QEMU goes on "running". So a probe guest must say so itself
(kvm_trial.py). A verdict is kept for as long as nothing that it depends on changes
(kvm_outcome.py); everything else that keeps us from KVM is about now only, and asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vmdriver.errors import DriverError
from vmdriver.host import facts
from vmdriver.host.users import access
from vmdriver.hypervisor.domain_xml import cpu_mode
from vmdriver.hypervisor.kvm import access as kvm_access
from vmdriver.hypervisor.kvm import outcome as kvm_outcome
from vmdriver.hypervisor.kvm.access import KVM_DEVICE
from vmdriver.hypervisor.kvm.outcome import Circumstances, Outcome, undecided
from vmdriver.hypervisor.kvm.trial import Trial
from vmdriver.hypervisor.machines import Machines
from vmdriver.lifecycle.ports.paths import BootChoice
from vmdriver.model.plan import Accelerator

_log = logging.getLogger(__name__)
_AGAIN_S = 600.0
"""After a try that decided nothing, the next launch has KVM asked again, in the background."""


@dataclass(frozen=True)
class _Answer:
    """What a try came to. `seen`: the device and the boot files as they were before it."""

    outcome: Outcome
    seen: tuple[str, str]
    at: float


@dataclass(eq=False)
class AcceleratorProbe:
    """Implements lifecycle.ports.host.AcceleratorChoice. `start` begins to find out, in the
    background. `boot`: the boot files of new launches; `results`: where the outcome is kept.
    """

    machines: Machines
    wanted: Literal["auto", "kvm", "tcg"]
    boot: Callable[[], BootChoice]
    results: Path
    trial: Trial
    _task: asyncio.Task[_Answer] | None = field(default=None, init=False)
    _refresh: asyncio.Task[_Answer] | None = field(default=None, init=False)
    _told: str | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin to find out."""
        if self._task is None:
            self._task = asyncio.create_task(self._find_out(), name="accelerator probe")

    async def chosen(self) -> Accelerator:
        if self.wanted != "auto":
            return self.wanted
        answer = self._known()
        if answer is not None and answer.seen != self._look():
            self._task = None
        elif answer is not None and self._stale(answer) and self._refresh is None:
            self._refresh = asyncio.create_task(self._find_out(), name="probe again")
            self._refresh.add_done_callback(self._take_over)
        self.start()
        assert self._task is not None  # noqa: S101 - start made it
        works = (await asyncio.shield(self._task)).outcome.works
        return "kvm" if works else "tcg"

    def _known(self) -> _Answer | None:
        task = self._task
        if task is None or not task.done():
            return None
        if task.cancelled() or task.exception() is not None:
            self._task = None  # a bug must not decide for good
            return None
        return task.result()

    def _stale(self, answer: _Answer) -> bool:
        now = asyncio.get_running_loop().time()
        return not answer.outcome.decided and now > answer.at + _AGAIN_S

    def _take_over(self, task: asyncio.Task[_Answer]) -> None:
        self._refresh = None
        if not task.cancelled():
            self._task = task

    async def close(self) -> None:
        """Give up a probe under way."""
        for task in (self._task, self._refresh):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _look(self) -> tuple[str, str]:
        """What can be looked at before every launch."""
        digest = ""
        with contextlib.suppress(DriverError):
            digest = self.boot().digest
        return facts.device_identity(KVM_DEVICE), digest

    async def _find_out(self) -> _Answer:
        with contextlib.suppress(DriverError):  # whoever asks KVM says what is wrong
            kvm_access.let_in(self.trial.owner.gid, KVM_DEVICE)
        seen = self._look()
        with contextlib.suppress(DriverError, OSError):
            await self.trial.clear()
        if self.wanted == "auto":
            outcome = await self._ask(seen[0])
            self._tell(outcome)
        else:
            outcome = Outcome(decided=True, works=self.wanted == "kvm")
        return _Answer(outcome, seen, asyncio.get_running_loop().time())

    def _tell(self, outcome: Outcome) -> None:
        if outcome.reason == self._told:
            return  # once per process, unless it has changed
        self._told = outcome.reason
        if outcome.works:
            _log.info("machines use KVM: a probe guest has booted on it")
        else:
            _log.warning(
                "machines run without hardware acceleration (TCG) and are slow: %s",
                outcome.reason,
            )

    async def _ask(self, device: str) -> Outcome:
        """Everything in the way that is no verdict is found first."""
        try:
            outcome = await self._undisturbed(device)
        except DriverError as error:
            outcome = undecided(f"the probe could not be run: {error.text()}")
        except OSError as error:
            outcome = undecided(f"the probe could not be run: {error}")
        with contextlib.suppress(OSError):
            kvm_outcome.store(self.results, outcome)
        return outcome

    async def _undisturbed(self, device: str) -> Outcome:
        if not device:
            return undecided(f"{KVM_DEVICE} does not exist")
        owner = self.trial.owner
        if await access.denied([KVM_DEVICE], "use", owner.uid, owner.gid):
            return undecided(
                f"{KVM_DEVICE} may not be used by the users that machines run as; "
                f"give group {owner.gid} an entry in its access list, or chmod it 0666"
            )
        boot = self.boot()
        theirs = self.machines.passage.theirs
        unreadable = await access.denied(
            [theirs(boot.kernel), theirs(boot.initramfs)], "read", owner.uid, owner.gid
        )
        if unreadable:
            return undecided(f"QEMU's user may not read {unreadable[0]}")
        about, host_boot = await self._circumstances(device, boot), facts.boot_id()
        kept = kvm_outcome.load(self.results)
        if kept is not None and kept.holds(about, host_boot):
            return kept
        outcome = await self.trial.ask(boot)
        return outcome.model_copy(update={"about": about, "host_boot": host_boot})

    async def _circumstances(self, device: str, boot: BootChoice) -> Circumstances:
        versions = await self.machines.releases()
        host = await self.machines.host("kvm")
        return Circumstances(
            device=device,
            kernel=facts.kernel_build(),
            processor=facts.processor(),
            qemu=f"{versions['hypervisor']} {facts.file_identity(host.emulator)}",
            boot_files=boot.digest,
            cpu=cpu_mode(host),
        )
