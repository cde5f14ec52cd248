"""What on the host carries our mark, in whatever state a driver left it."""

from __future__ import annotations

from vmdriver.lifecycle.engine.ledger import (
    MACHINE,
    Held,
    Ledger,
    Scope,
    VolatileJournal,
)
from vmdriver.lifecycle.engine.resource import (
    FIREWALL,
    HOST_MOUNTS,
    TAP,
    Given,
    Resources,
)
from vmdriver.lifecycle.launch.host_mounts import host_mounts_part
from vmdriver.lifecycle.launch.resources import firewall, machine, tap
from vmdriver.lifecycle.ports.host import Found
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.ids import mark

KEYS = {
    "domain": MACHINE,
    "tap": TAP,
    "namespace": TAP,
    "firewall": FIREWALL,
    "folders": HOST_MOUNTS,
}
"""What each kind of them is in a ledger."""


async def marked(ports: Ports) -> list[Found]:
    """What is marked as ours, machines first: they hold the rest."""
    return [
        *await ports.hypervisor.marked(),
        *await ports.host_folders.marked(),
        *await ports.network.marked(),
    ]


def entry(found: Found, instance: str, guest_ip: str = "") -> Held:
    """What a ledger would say of it. `guest_ip`: "" where it is not known."""
    name, owner = found.name, mark(instance, found.sandbox_id)
    data = {
        MACHINE: {"domain": name},
        TAP: {"tap": name, "mark": owner, "guest_ip": guest_ip},
        FIREWALL: {"tap": name},
        HOST_MOUNTS: {"mark": owner, "directory": name},
    }
    key = KEYS[found.kind]
    return Held(key, Scope.RUNTIME, data[key], done=True)


async def remove(ports: Ports, orphan: Found, instance: str) -> None:
    """Remove one of them: it is given back as if a ledger held it."""
    network, unowned = ports.network, Ledger(VolatileJournal())
    rules = firewall(network, ports.network_guard)
    shared = host_mounts_part(ports.host_folders)
    kinds = Resources((tap(network), rules, shared, machine(ports.hypervisor)))
    held = entry(orphan, instance)
    await kinds.release(Given(held, orphan.sandbox_id, unowned))
