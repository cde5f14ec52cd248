"""Finds host objects that carry our mark and belong to no record."""

from __future__ import annotations

from vmdriver.lifecycle.ports import Found
from vmdriver.lifecycle.steps import Ports
from vmdriver.model.ids import mark


async def orphans(ports: Ports, known: set[str]) -> list[Found]:
    """What is marked as ours and claimed by nobody, machines first: they hold the rest."""
    found = [*await ports.hypervisor.marked(), *await ports.network.marked()]
    return [item for item in found if item.sandbox_id not in known]


async def remove(ports: Ports, orphan: Found, instance: str) -> None:
    """Remove one of them."""
    if orphan.kind == "domain":
        await ports.hypervisor.destroy(orphan.name)
    elif orphan.kind == "firewall":
        await ports.network.remove_rules(orphan.name)
    elif orphan.kind == "tap":
        await ports.network.remove_tap(orphan.name, mark(instance, orphan.sandbox_id))
