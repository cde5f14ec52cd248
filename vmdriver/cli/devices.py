"""vmdriver devices ls: which of the host's devices sandboxes may have, and who has them. Works
without a running driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from vmdriver.cli.terminal import print_json, print_table
from vmdriver.cli.unread import known_sandboxes, read_state
from vmdriver.config import Config
from vmdriver.devices import looking
from vmdriver.devices.files import Files
from vmdriver.errors import StorageError
from vmdriver.lifecycle.engine.resource import DEVICES
from vmdriver.lifecycle.launch.devices import functions_of
from vmdriver.model.devices import DevicePicture, obstacle
from vmdriver.storage.layout import Layout


@dataclass(frozen=True)
class SeenDevice:
    """One that the operator allows."""

    address: str
    kind: str
    """What it is, for people."""
    id: str
    """Vendor and device, as lspci -n writes them; "" where it is not there."""
    group: int | None
    """Of the IOMMU."""
    together_with: tuple[str, ...]
    """What else whoever has it has."""
    driver: str
    state: str
    """free, held, or unfit."""
    sandbox: str
    """Who has it, by id."""
    reason: str
    """Why it is unfit, as `message` and `resolution` are."""
    message: str
    resolution: str


def devices(config: Config, *, as_json: bool, files: Files | None = None) -> int:
    """Print them."""
    found = seen_devices(config, files or Files())
    if as_json:
        print_json([asdict(device) for device in found])
        return 0
    rows = [
        (
            device.address,
            device.kind,
            device.id or "-",
            "-" if device.group is None else str(device.group),
            device.driver or "-",
            device.sandbox if device.state == "held" else device.state,
            device.message or "-",
        )
        for device in found
    ]
    columns = ("address", "kind", "id", "group", "driver", "who has it", "why not")
    print_table(columns, rows)
    return 0


def seen_devices(config: Config, files: Files) -> list[SeenDevice]:
    """In the operator's order. Blocking."""
    allowed = tuple(config.machines.passthrough_devices)
    picture = looking.look(files, allowed)
    owners = owners_on_disk(Layout(config.driver.state_dir))
    return [_seen(address, picture, allowed, owners) for address in allowed]


def owners_on_disk(layout: Layout) -> dict[str, str]:
    """Sandboxes' ids, by the address of what their ledgers hold."""
    owners: dict[str, str] = {}
    for name in known_sandboxes(layout):
        held = read_state(layout.sandbox(name)).held.get(DEVICES)
        if held is None:
            continue
        with suppress(StorageError):  # doctor tells of it
            functions = functions_of(held)
            owners |= {function.address: name for function in functions}
    return owners


def _seen(
    address: str,
    picture: DevicePicture,
    allowed: tuple[str, ...],
    owners: Mapping[str, str],
) -> SeenDevice:
    found, why = picture.functions.get(address), obstacle(address, picture, allowed)
    owner = owners.get(address, "")
    together = (f.address for f in picture.together_with(address))
    return SeenDevice(
        address=address,
        kind=_kind(found.kind, found.physical) if found else "not there",
        id=f"{found.vendor:04x}:{found.device:04x}" if found else "",
        group=found.group if found else None,
        together_with=tuple(a for a in together if a != address),
        driver=found.driver if found else "",
        state="held" if owner else "unfit" if why else "free",
        sandbox=owner,
        reason=why.reason if why else "",
        message=why.message if why else "",
        resolution=why.resolution if why else "",
    )


_KINDS = {
    0x01: "storage",
    0x02: "network",
    0x03: "GPU",
    0x04: "sound",
    0x0C: "serial bus",
    0x12: "accelerator",
}


def _kind(number: int, physical: str) -> str:
    """By the base class (PCI Code and ID Assignment)."""
    kind = _KINDS.get(number >> 16, f"class {number >> 8:04x}")
    return f"{kind} (of {physical})" if physical else kind
