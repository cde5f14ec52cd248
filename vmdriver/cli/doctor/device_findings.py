"""What `vmdriver doctor` says of devices that sandboxes may have."""

from __future__ import annotations

from collections.abc import Iterator

from vmdriver.cli.devices import SeenDevice, seen_devices
from vmdriver.cli.doctor.finding import Finding
from vmdriver.config import Config
from vmdriver.devices import looking
from vmdriver.devices.files import Files
from vmdriver.model.devices import SETTING

_UNSAFE = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"


def device_findings(config: Config, files: Files | None = None) -> Iterator[Finding]:
    """Whether there is an IOMMU, and of each device whether it can be had, and who has it."""
    files = files or Files()
    groups = files.names(looking.GROUPS)
    iommu = f"{len(groups)} IOMMU groups" if groups else "no IOMMU"
    if not config.machines.passthrough_devices:
        yield Finding("devices", "ok", f"none may be passed through ({iommu})")
        return
    yield Finding("devices", "ok" if groups else "warn", iommu)
    if config.driver.accelerator == "tcg":
        text = f"tcg is configured: nobody gets any of {SETTING}"
        yield Finding("devices", "warn", text, "use auto, on a host with KVM")
    if files.read(_UNSAFE) == "Y":
        text = "a guest with a device can raise interrupts of the host's (allow_unsafe_interrupts)"
        advice = "a host whose IOMMU remaps interrupts does not need it"
        yield Finding("devices", "warn", text, advice)
    for device in seen_devices(config, files):
        yield _of(device)


def _of(device: SeenDevice) -> Finding:
    check = f"device {device.address}"
    if device.reason:
        had = f"; sandbox {device.sandbox} has it" if device.sandbox else ""
        return Finding(
            check,
            "fail",
            f"{device.message}{had}",
            device.resolution,
            machines_start=True,
        )
    whose = f"sandbox {device.sandbox} has it" if device.sandbox else "free"
    along = f" with {', '.join(device.together_with)}" if device.together_with else ""
    text = f"{device.kind} {device.id}, IOMMU group {device.group}{along}: {whose}"
    return Finding(check, "ok", text)
