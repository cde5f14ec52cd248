"""What operators and requests say of devices, and what operators are told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.fakes.sysfs import FakeSysfs
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.cli.devices import devices, seen_devices
from vmdriver.cli.doctor.device_findings import device_findings
from vmdriver.config import Config, config_of
from vmdriver.config.views import settings_from
from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.engine.ledger import Held, Scope
from vmdriver.lifecycle.engine.resource import DEVICES
from vmdriver.lifecycle.launch.devices import entry_data
from vmdriver.model.devices import PassedFunction
from vmdriver.service.codec import decode_sandbox

GPU, AUDIO, LOST, DISK = "0000:3b:00.0", "0000:3b:00.1", "0000:5e:00.0", "0000:41:00.0"


def config(tmp_path: Path, *addresses: str, **more: Any) -> Config:
    return config_of(
        {
            "state_dir": str(tmp_path / "state"),
            "passthrough_devices": list(addresses),
            **more,
        }
    )


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    host = FakeSysfs(tmp_path / "host")
    host.add(GPU)
    host.add(AUDIO, 0x040300, driver="snd_hda_intel", bars_mib=0)
    host.add(DISK, 0x010802, group=8, driver="nvme")
    return host


def hold(tmp_path: Path, sandbox_id: str, *functions: PassedFunction) -> None:
    """A ledger on disk that has them."""
    folder = tmp_path / "state/sandboxes" / sandbox_id
    folder.mkdir(parents=True)
    held = Held(DEVICES, Scope.RUNTIME, dict(entry_data(functions)), done=True)
    lines = "".join(json.dumps(line) + "\n" for line in held.lines())
    (folder / "ledger.jsonl").write_text(lines)
    (folder / "record.json").write_text("{}")


def test_addresses_are_kept_as_the_kernel_writes_them(tmp_path: Path) -> None:
    told = config(tmp_path, "3B:00.0", GPU, "0000:AF:1f.7")
    assert settings_from(told).passthrough_devices == (GPU, "0000:af:1f.7")
    for wrong in ("3b:00", "0000:3b:20.0", "0000:3b:00.8", "nvidia0", "../../x"):
        with pytest.raises(ValidationError, match="is no PCI address"):
            config(tmp_path, wrong)


def test_a_domain_that_no_machine_can_be_told_of_is_refused_where_it_is_named(
    tmp_path: Path,
) -> None:
    told = config(tmp_path, "0000003b:00:00.0", "FFFF:3b:00.0")
    assert settings_from(told).passthrough_devices == ("003b:00:00.0", "ffff:3b:00.0")
    with pytest.raises(ValidationError, match="domain 10000: QEMU takes none above"):
        config(tmp_path, "10000:01:00.0")


def test_devices_take_the_embedded_connection(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match='connection = "embed"'):
        config(tmp_path, GPU, connection="qemu:///system")
    config(tmp_path, connection="qemu:///system")


def gpus_of(**gpu: int) -> int:
    request = pb.CreateSandboxRequest()
    request.sandbox.id = request.sandbox.name = "s1"
    request.sandbox.spec.template.image = "example.org/image:1"
    request.sandbox.spec.resource_requirements.gpu.SetInParent()
    if gpu:
        request.sandbox.spec.resource_requirements.gpu.count = gpu["count"]
    return decode_sandbox(request, "")[0].resources.gpus


def test_a_requirement_is_one_gpu_unless_it_says_how_many() -> None:
    assert (gpus_of(), gpus_of(count=3)) == (1, 3)
    with pytest.raises(InvalidRequest, match=r"gpu\.count: must be at least 1"):
        gpus_of(count=0)


def test_operators_are_told_who_has_what_and_what_stands_in_the_way(
    tmp_path: Path, sysfs: FakeSysfs
) -> None:
    hold(tmp_path, "s1", PassedFunction(address=GPU, group=7, driver="nvidia"))
    told = config(tmp_path, GPU, LOST, DISK)
    found = {device.address: device for device in seen_devices(told, sysfs)}
    gpu = found[GPU]
    assert (gpu.state, gpu.sandbox, gpu.reason) == ("held", "s1", "DeviceGroupShared")
    assert (gpu.kind, gpu.id, gpu.group) == ("GPU", "10de:20b0", 7)
    assert gpu.together_with == (AUDIO,)
    assert (found[LOST].state, found[LOST].reason) == ("unfit", "DeviceMissing")
    assert (found[DISK].state, found[DISK].sandbox) == ("free", "")


def test_doctor_has_a_line_for_each_and_none_of_them_keeps_machines_from_starting(
    tmp_path: Path, sysfs: FakeSysfs
) -> None:
    hold(tmp_path, "s1", PassedFunction(address=DISK, group=8, driver="nvme"))
    told = config(tmp_path, GPU, AUDIO, DISK, LOST)
    lines = {f.check: f for f in device_findings(told, sysfs)}
    assert lines["devices"].message == "2 IOMMU groups"
    assert lines[f"device {GPU}"].level == "ok"
    assert "GPU 10de:20b0, IOMMU group 7" in lines[f"device {GPU}"].message
    assert lines[f"device {DISK}"].message.endswith("sandbox s1 has it")
    assert lines[f"device {LOST}"].level == "fail"
    assert not any(line.blocks for line in lines.values())
    (nothing,) = device_findings(config(tmp_path), sysfs)
    assert nothing.level == "ok"


def test_doctor_warns_of_what_makes_devices_unsafe_or_useless(
    tmp_path: Path, sysfs: FakeSysfs
) -> None:
    told = config(tmp_path, GPU, AUDIO, accelerator="tcg")
    unsafe = sysfs.root / "sys/module/vfio_iommu_type1/parameters"
    unsafe.mkdir(parents=True)
    (unsafe / "allow_unsafe_interrupts").write_text("Y\n")
    warned = [f.message for f in device_findings(told, sysfs) if f.level == "warn"]
    assert len(warned) == 2
    bare = FakeSysfs(tmp_path / "bare", iommu=False)
    first = next(device_findings(told, bare))
    assert (first.level, first.message) == ("warn", "no IOMMU")


def test_the_command_prints_a_table_and_a_document(
    tmp_path: Path, sysfs: FakeSysfs, capsys: pytest.CaptureFixture[str]
) -> None:
    told = config(tmp_path, GPU, AUDIO)
    assert devices(told, as_json=True, files=sysfs) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["address"], first["state"]) == (GPU, "free")
    assert second["kind"] == "sound"
    assert devices(told, as_json=False, files=sysfs) == 0
    table = capsys.readouterr().out
    assert "10de:20b0" in table
    assert "who has it" in table
