"""What on the host carries our mark, in whatever state a driver left it."""

from __future__ import annotations

from vmdriver.lifecycle.ports.host import Found
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.ids import mark


async def marked(ports: Ports) -> list[Found]:
    """What is marked as ours, machines first: they hold the rest."""
    return [*await ports.hypervisor.marked(), *await ports.network.marked()]


async def remove(ports: Ports, orphan: Found, instance: str) -> None:
    """Remove one of them."""
    if orphan.kind == "domain":
        await ports.hypervisor.destroy(orphan.name)
    elif orphan.kind == "firewall":
        await ports.network.remove_rules(orphan.name)
    elif orphan.kind == "tap":
        await ports.network.remove_tap(orphan.name, mark(instance, orphan.sandbox_id))
