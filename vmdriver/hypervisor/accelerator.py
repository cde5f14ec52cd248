"""Chooses KVM only after a guest has really booted on it.

/dev/kvm may be there, open, and useless: under some nested hypervisors a stock kernel
never reaches user space while QEMU goes on "running". So a probe guest must say so
itself, on its status disk, within a deadline. The result is kept per host kernel,
hypervisor version and boot files.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Literal

from vmdriver.errors import DriverError, HypervisorError
from vmdriver.host import facts
from vmdriver.hypervisor.domain_xml import render_probe
from vmdriver.hypervisor.machines import Machines
from vmdriver.lifecycle.ports import Ownership
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Accelerator

_log = logging.getLogger(__name__)
KVM_DEVICE = "/dev/kvm"
_QEMU_ENDED = "closed the monitor"


class AcceleratorProbe:
    """Implements lifecycle.ports.AcceleratorChoice. `start` begins the probe in the
    background.
    """

    def __init__(
        self,
        machines: Machines,
        wanted: Literal["auto", "kvm", "tcg"],
        boot: tuple[str, str, str],
        results: Path,
        work: Path,
        owner: Ownership,
        instance: str,
        deadline_s: float,
    ) -> None:
        self._machines = machines
        self._wanted = wanted
        self._kernel, self._initramfs, self._boot_digest = boot
        self._results = results
        self._work = work
        self._owner = owner
        self._name = f"{instance}-probe"
        self._deadline_s = deadline_s
        self._task: asyncio.Task[tuple[Accelerator, str]] | None = None

    def start(self) -> None:
        """Begin to find out."""
        if self._task is None:
            self._task = asyncio.create_task(self._choose(), name="accelerator probe")

    async def chosen(self) -> Accelerator:
        """See ports.AcceleratorChoice."""
        self.start()
        assert self._task is not None  # noqa: S101 - start made it
        return (await asyncio.shield(self._task))[0]

    def note(self) -> str:
        """See ports.AcceleratorChoice."""
        return (
            self._task.result()[1]
            if self._task is not None and self._task.done()
            else ""
        )

    async def close(self) -> None:
        """Give up a probe under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _choose(self) -> tuple[Accelerator, str]:
        if self._wanted == "tcg":
            return "tcg", ""
        if self._wanted == "kvm":
            return "kvm", ""
        reason = await self._reason_against_kvm()
        if not reason:
            _log.info("machines use KVM: a probe guest has booted on it")
            return "kvm", ""
        note = (
            f"machines run without hardware acceleration (TCG) and are slow: {reason}"
        )
        _log.warning("%s", note)
        return "tcg", note

    async def _reason_against_kvm(self) -> str:
        if not Path(KVM_DEVICE).exists():
            return f"{KVM_DEVICE} does not exist"
        if not facts.may_use(KVM_DEVICE, self._owner.uid, self._owner.gid):
            return (
                f"{KVM_DEVICE} may not be used by the user that QEMU runs as; "
                "chgrp it to QEMU's group, mode 0660"
            )
        try:
            versions = await self._machines.versions()
            key = f"{facts.kernel_release()} qemu-{versions['hypervisor']} {self._boot_digest}"
            known = self._load()
            if key not in known:
                known[key] = await self._probe()
                self._results.write_text(json.dumps(known, indent=1))
            return known[key]
        except DriverError as error:
            return f"the probe could not be run: {error}"

    def _load(self) -> dict[str, str]:
        try:
            return {
                str(k): str(v) for k, v in json.loads(self._results.read_text()).items()
            }
        except (OSError, ValueError):
            return {}

    async def _probe(self) -> str:
        """Boot a guest on KVM; "" when it said that it is there, else what happened.

        Other errors of the hypervisor are raised: they say nothing about KVM.
        """
        status, console = self._work / "status.img", self._work / "console.log"
        for path, size in ((status, 65536), (console, 0)):
            path.write_bytes(b"\0" * size)
            os.chown(path, self._owner.uid, self._owner.gid)
        host = await self._machines.host("kvm")
        boot = (self._kernel, self._initramfs)
        text = render_probe(self._name, boot, str(status), str(console), host)
        await self._machines.destroy(self._name)
        try:
            await self._machines.start_xml(self._name, text)
            return await self._wait(status)
        except HypervisorError as error:
            if _QEMU_ENDED not in error.message:
                raise
            return f"QEMU itself ended on KVM: {error.message.splitlines()[-1].strip()[:200]}"
        finally:
            await self._machines.destroy(self._name)

    async def _wait(self, status: Path) -> str:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_s
        while loop.time() < deadline:
            if status.read_bytes().startswith(b"phase=probed"):
                return ""
            if await self._machines.observe(self._name) not in {
                DomainState.RUNNING,
                DomainState.PAUSED,
            }:
                last = status.read_bytes().startswith(b"phase=probed")
                return (
                    ""
                    if last
                    else "a probe guest ended on KVM before it reached user space"
                )
            await asyncio.sleep(0.1)
        return f"a probe guest did not reach user space on KVM within {self._deadline_s:g} s"
