"""Which accelerator is chosen, what is kept of it, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

import vmdriver.hypervisor.kvm.accelerator as module
from tests.fakes.machines import OWNER, FakeMachines
from vmdriver.errors import Refused
from vmdriver.host import facts
from vmdriver.hypervisor.kvm import outcome as kvm_outcome
from vmdriver.hypervisor.kvm.accelerator import AcceleratorProbe
from vmdriver.hypervisor.kvm.trial import Trial
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.paths import BootChoice


class Place:
    """A host: its device, boot files and kept outcome. `probe` is a driver's start on it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.digest = root, "digest"
        self.results = root / "results.json"
        self.device = root / "kvm"
        self.kernel = root / "kernel"
        for path in (self.device, self.kernel):
            path.touch(0o600)
        monkeypatch.setattr(module, "KVM_DEVICE", str(self.device))
        self.owner = OWNER

    def boot(self) -> BootChoice:
        if not self.digest:
            raise Refused("there are no guest boot files")
        return BootChoice(str(self.kernel), str(self.kernel), self.digest)

    def probe(self, machines: FakeMachines, wanted: str = "auto") -> AcceleratorProbe:
        trial = Trial(machines, "t", self.root, self.owner, 0.3)
        return AcceleratorProbe(machines, wanted, self.boot, self.results, trial)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("behaviour", "accelerator", "words", "starts"),
    [
        ("boots", "kvm", "", 1),
        ("hangs", "tcg", "did not reach user space within 0.3 s", 1),
        ("ends", "tcg", "it ended early", 2),
        ("QEMU ends", "tcg", "QEMU itself ended: start: qemu unexpectedly", 2),
    ],
)
async def test_a_verdict_on_kvm_is_kept_and_told_once_per_start(
    behaviour: str,
    accelerator: str,
    words: str,
    starts: int,
    place: Place,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machines = FakeMachines(place.root, behaviour)
    for _start in range(2):
        caplog.clear()
        driver = place.probe(machines)
        for _launch in range(3):
            assert await driver.chosen() == accelerator
        assert machines.starts.count("kvm") == starts, "the verdict is kept"
        warnings = [r for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == (accelerator == "tcg")
        assert all(words in r.getMessage() for r in warnings)
    assert not machines.running, "the probe guests are gone"
    assert [p.name for p in place.root.glob("t-*")] == [], "so are their files"
    assert kvm_outcome.load(place.results).decided


async def test_a_guest_that_is_ended_by_somebody_is_tried_once_more(
    place: Place,
) -> None:
    machines = FakeMachines(place.root, "ends once")
    assert await place.probe(machines).chosen() == "kvm"
    assert machines.starts == ["kvm", "kvm"]


async def test_where_qemu_itself_refuses_kvm_nobody_waits_for_the_other_guest(
    place: Place,
) -> None:
    machines = FakeMachines(place.root, "QEMU ends", "hangs")
    assert await place.probe(machines).chosen() == "tcg"
    outcome = kvm_outcome.load(place.results)
    assert outcome.decided
    assert "failed to set MSR" in outcome.reason


async def test_a_guest_on_kvm_that_is_late_counts_as_booted(place: Place) -> None:
    machines = FakeMachines(place.root, "hangs", "hangs")
    machines.late = lambda: machines.say("t-probe")
    assert await place.probe(machines).chosen() == "kvm"


@pytest.mark.parametrize(
    ("kvm", "tcg"),
    [
        ("hangs", "hangs"),
        ("ends", "QEMU ends"),
        ("libvirt fails", "boots"),
        ("no such file", "boots"),
        ("hangs", "libvirt fails"),
    ],
)
async def test_what_is_not_kvms_fault_is_no_verdict(
    kvm: str, tcg: str, place: Place
) -> None:
    machines = FakeMachines(place.root, kvm, tcg)
    assert await place.probe(machines).chosen() == "tcg"
    assert not kvm_outcome.load(place.results).decided
    machines.behaviour = {"kvm": "boots", "qemu": "boots"}
    assert await place.probe(machines).chosen() == "kvm", (
        "asked again at the next start"
    )


async def test_files_that_qemus_user_may_not_read_are_no_verdict(
    place: Place,
) -> None:
    machines = FakeMachines(place.root, "boots")
    place.device.chmod(0o666)
    place.owner = Ownership(65534, 65534)
    driver = place.probe(machines)
    assert await driver.chosen() == "tcg"
    outcome = kvm_outcome.load(place.results)
    assert "may not" in outcome.reason
    assert not outcome.decided
    assert machines.starts == []


async def test_without_the_device_or_its_permission_or_boot_files_it_is_asked_again_by_the_next_launch(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    machines = FakeMachines(place.root, "boots")
    place.device.unlink()
    driver = place.probe(machines)
    assert await driver.chosen() == "tcg"
    assert "does not exist" in caplog.text
    place.digest = ""
    place.device.touch()
    assert await driver.chosen() == "tcg"
    assert "no guest boot files" in caplog.text
    assert machines.starts == []
    place.digest = "digest"
    assert await driver.chosen() == "kvm"


async def test_what_decided_nothing_is_asked_again_later_without_holding_a_launch_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = FakeMachines(place.root, "libvirt fails")
    driver = place.probe(machines)
    assert await driver.chosen() == "tcg"
    machines.behaviour["kvm"] = "boots"
    assert await driver.chosen() == "tcg"
    monkeypatch.setattr(module, "_AGAIN_S", -1.0)
    assert await driver.chosen() == "tcg", "the old answer meanwhile"
    assert driver._refresh is not None
    await driver._refresh
    assert await driver.chosen() == "kvm"


@pytest.mark.parametrize("change", ["device", "rights", "kernel", "QEMU", "boot files"])
@pytest.mark.parametrize("before", ["hangs", "boots"])
async def test_kvm_is_asked_again_when_what_the_verdict_is_about_changes(
    change: str, before: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = FakeMachines(place.root, before)
    await place.probe(machines).chosen()
    asked = machines.starts.count("kvm")
    if change == "device":
        monkeypatch.setattr(facts, "device_identity", lambda _path: "10:99 0660 0:0")
    elif change == "rights":
        place.device.chmod(0o666)
    elif change == "kernel":
        monkeypatch.setattr(facts, "kernel_build", lambda: "99.9 #1")
    elif change == "QEMU":
        machines.version = "10.0.0"
    else:
        place.digest = "other"
    await place.probe(machines).chosen()
    assert machines.starts.count("kvm") == asked + 1


async def test_a_verdict_against_kvm_is_good_until_the_host_restarts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = FakeMachines(place.root, "hangs")
    await place.probe(machines).chosen()
    monkeypatch.setattr(facts, "boot_id", lambda: "another boot")
    machines.behaviour["kvm"] = "boots"
    assert await place.probe(machines).chosen() == "kvm"
    monkeypatch.setattr(facts, "boot_id", lambda: "a third boot")
    await place.probe(machines).chosen()
    assert machines.starts.count("kvm") == 2, "one for it outlives the boot"


async def test_reasons_that_earlier_versions_kept_are_no_verdicts(place: Place) -> None:
    key = f"{facts.kernel_release()} qemu-7.2.0 digest"
    place.results.write_text(json.dumps({key: "a probe guest did not reach it"}))
    assert await place.probe(FakeMachines(place.root, "boots")).chosen() == "kvm"
    for damage in ("", "[]", '{"schema_version": 2}', "\0" * 100):
        place.results.write_text(damage)
        assert await place.probe(FakeMachines(place.root, "boots")).chosen() == "kvm"


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
async def test_what_is_configured_is_used_and_leftovers_of_a_trial_go(
    wanted: str, place: Place
) -> None:
    machines = FakeMachines(place.root, "hangs")
    machines.running = {"t-probe": "kvm", "t-control": "qemu"}
    driver = place.probe(machines, wanted)
    assert await driver.chosen() == wanted
    driver.start()
    await driver._task
    assert machines.running == {}


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        *(("auto", None, "kvm"), ("auto", True, "kvm"), ("auto", False, "tcg")),
        *(("kvm", False, "kvm"), ("tcg", True, "tcg")),
    ],
)
def test_a_plan_that_is_only_shown_has_what_the_last_try_has_shown(
    tmp_path: Path,
    wanted: Literal["auto", "kvm", "tcg"],
    known: bool | None,
    expected: str,
) -> None:
    path = tmp_path / "accelerator.json"
    if known is not None:
        kvm_outcome.store(path, kvm_outcome.Outcome(decided=True, works=known))
        assert path.stat().st_mode & 0o777 == 0o600
    assert kvm_outcome.likely(wanted, path) == expected
