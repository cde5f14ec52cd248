"""What a request says of devices, and what cannot be together with them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmdriver.errors import InvalidRequest, Refused
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.devices import SETTING, WantedDevices, pci_address
from vmdriver.model.plan import Accelerator
from vmdriver.model.spec import SandboxSpec

KEY = "devices"
_FIELD, _GPU = f"template.driver_config.{KEY}", "spec.resource_requirements.gpu"
DEVICES_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "items": {"type": "string"},
    "uniqueItems": True,
    "description": f"PCI addresses of the host's devices that the machine gets; of those in the "
    f"operator's {SETTING}",
}
"""JSON Schema of the key in template.driver_config."""


def wanted_devices(spec: SandboxSpec) -> WantedDevices:
    """As it asks for them. InvalidRequest."""
    asked = spec.driver_config.get(KEY, [])
    if not isinstance(asked, list | tuple):
        raise InvalidRequest(_FIELD, "must be a list of PCI addresses")
    found: list[str] = []
    for index, text in enumerate(asked):
        path = f"{_FIELD}[{index}]"
        if not isinstance(text, str):
            raise InvalidRequest(path, f"must be a string, not {type(text).__name__}")
        try:
            address = pci_address(text)
        except ValueError as error:
            raise InvalidRequest(path, str(error)) from error
        if address in found:
            raise InvalidRequest(path, f"names {address} a second time")
        found.append(address)
    return WantedDevices(tuple(found), spec.resources.gpus)


def check_devices(spec: SandboxSpec, settings: Settings) -> None:
    """All that can be said without looking at the host. InvalidRequest, Refused."""
    wanted = wanted_devices(spec)
    if not wanted:
        return
    check_allowed(wanted, settings.passthrough_devices)
    if spec.driver_config.get("on_stop") == "suspend":
        raise Refused(
            f"template.driver_config.on_stop: a machine with {_named(wanted)} has no memory "
            "that could be kept",
            reason="DevicePassedThrough",
            resolution='leave it out, or say "shutdown"',
        )


def check_allowed(wanted: WantedDevices, allowed: tuple[str, ...]) -> None:
    """Refused where the operator does not let sandboxes have that; not any more, it may be."""
    if wanted.gpus > len(allowed):
        have = f"{len(allowed)} devices" if allowed else "no device"
        raise Refused(
            f"{_GPU}: {wanted.gpus} asked for, and this driver may pass {have} through",
            reason="GpuUnsupported",
            resolution=f"ask for a sandbox without a GPU, or name the host's in {SETTING}",
        )
    for address in wanted.addresses:
        if address not in allowed:
            raise Refused(
                f"{_FIELD}: {address} may not be passed through",
                reason="DeviceNotAllowed",
                resolution=f"ask for another one, or have the operator name it in {SETTING}",
            )


def check_accelerator(wanted: WantedDevices, accelerator: Accelerator) -> None:
    """Refused where the host does not run its machines itself."""
    if wanted and accelerator != "kvm":
        raise Refused(
            f"{_named(wanted)}: machines run without KVM on this host, and such ones are given "
            "no device",
            reason="DevicesNeedKvm",
            resolution="see what vmdriver doctor says of the accelerator",
        )


def _named(wanted: WantedDevices) -> str:
    return _FIELD if wanted.addresses else _GPU
