"""Which accelerator is chosen, and what is said about it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import vmdriver.hypervisor.accelerator as module
from vmdriver.errors import HypervisorError, Unavailable
from vmdriver.hypervisor.accelerator import AcceleratorProbe
from vmdriver.hypervisor.domain_xml import Host
from vmdriver.lifecycle.ports import Ownership
from vmdriver.model.phase import DomainState

OWNER = Ownership(os.getuid(), os.getgid())


class FakeMachines:
    """A hypervisor whose guests boot, hang or end."""

    def __init__(self, behaviour: str, work: Path) -> None:
        self.behaviour, self.work, self.probes = behaviour, work, 0
        self.running = False

    async def versions(self) -> dict[str, str]:
        return {"hypervisor": "7.2.0", "libvirt": "9.0.0"}

    async def host(self, _kind: str) -> Host:
        return Host("kvm", "x86_64", "pc-q35-7.2", "/usr/bin/qemu", OWNER)

    async def start_xml(self, name: str, text: str) -> None:
        assert 'type="kvm"' in text
        self.probes += 1
        if self.behaviour == "QEMU ends":
            raise HypervisorError(
                "start: qemu unexpectedly closed the monitor: failed to set MSR"
            )
        if self.behaviour == "libvirt fails":
            raise Unavailable("libvirt is away")
        self.running = self.behaviour != "ends"
        if self.behaviour == "boots":
            (self.work / "status.img").write_bytes(b"phase=probed\n")

    async def observe(self, name: str) -> DomainState:
        return DomainState.RUNNING if self.running else DomainState.OFF

    async def destroy(self, name: str) -> None:
        self.running = False


def probe(
    machines: FakeMachines, tmp_path: Path, wanted: str = "auto"
) -> AcceleratorProbe:
    boot = ("/kernel", "/initramfs", "digest")
    return AcceleratorProbe(
        machines, wanted, boot, tmp_path / "results.json", tmp_path, OWNER, "t", 0.3
    )


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    path.chmod(0o600)
    monkeypatch.setattr(module, "KVM_DEVICE", str(path))
    return path


@pytest.mark.parametrize(
    ("behaviour", "accelerator", "words"),
    [
        ("boots", "kvm", ""),
        ("hangs", "tcg", "did not reach user space on KVM within 0.3 s"),
        ("ends", "tcg", "ended on KVM before it reached user space"),
        ("QEMU ends", "tcg", "QEMU itself ended on KVM"),
    ],
)
async def test_kvm_is_chosen_only_when_a_guest_has_booted_on_it(
    behaviour: str,
    accelerator: str,
    words: str,
    tmp_path: Path,
    device: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machines = FakeMachines(behaviour, tmp_path)
    first = probe(machines, tmp_path)
    assert await first.chosen() == accelerator
    assert words in first.note()
    assert (words in caplog.text) or accelerator == "kvm", "said loudly"
    assert not machines.running, "the probe guest is gone"
    second = probe(machines, tmp_path)
    assert await second.chosen() == accelerator
    assert machines.probes == 1, "the result is kept"
    key = next(iter(json.loads((tmp_path / "results.json").read_text())))
    assert "7.2.0" in key
    assert "digest" in key


async def test_a_hypervisor_that_is_away_says_nothing_about_kvm(
    tmp_path: Path, device: Path
) -> None:
    first = probe(FakeMachines("libvirt fails", tmp_path), tmp_path)
    assert await first.chosen() == "tcg"
    assert not (tmp_path / "results.json").exists(), "it is tried again next time"


async def test_without_the_device_or_its_permission_there_is_no_probe(
    tmp_path: Path, device: Path
) -> None:
    machines = FakeMachines("boots", tmp_path)
    device.unlink()
    missing = probe(machines, tmp_path)
    assert await missing.chosen() == "tcg"
    assert "does not exist" in missing.note()
    device.touch()
    device.chmod(0o000)
    closed = probe(machines, tmp_path)
    assert await closed.chosen() == "tcg"
    assert "chgrp" in closed.note()
    assert machines.probes == 0


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
async def test_what_is_configured_is_used(wanted: str, tmp_path: Path) -> None:
    assert (
        await probe(FakeMachines("hangs", tmp_path), tmp_path, wanted).chosen()
        == wanted
    )
