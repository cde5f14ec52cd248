"""What a launch acquires, in order, and how each is given back. A launch is this list,
not a long function.

The machine is the last step, so whoever finds a running machine knows that everything
else is in place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vmdriver.lifecycle.addresses import AddressPool
from vmdriver.lifecycle.extension_runner import RUN, STAY
from vmdriver.lifecycle.hooks import Reason
from vmdriver.lifecycle.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.ports import Disks, Hypervisor, Images, Network, Records
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord

LEASE = "lease"
OVERLAY = "overlay"
FILES = "launch-files"
TAP = "tap"
FIREWALL = "firewall"
MACHINE = "machine"


@dataclass(frozen=True)
class Ports:
    """Every outside world that the core works on."""

    hypervisor: Hypervisor
    network: Network
    disks: Disks
    images: Images
    records: Records


@dataclass(frozen=True)
class Step:
    """One acquisition. `undo` is stored before `acquire` runs. `blame` is what clean-up
    hooks are told if it fails.
    """

    key: str
    scope: Scope
    undo: Mapping[str, Any]
    acquire: Callable[[], Awaitable[None]]
    blame: Reason


def launch_steps(
    ports: Ports,
    instance: str,
    plan: LaunchPlan,
    environment: Mapping[str, str],
    secrets: Mapping[str, bytes],
) -> list[Step]:
    """The steps from a frozen plan to a running machine."""
    owner = mark(instance, plan.sandbox_id)
    network, root = plan.network, plan.disk("root")
    tap = network.lease.tap
    return [
        Step(
            OVERLAY,
            Scope.PERSISTENT,
            {"path": root.path},
            lambda: ports.disks.create_overlay(root),
            Reason.GUEST_PREPARE_FAILED,
        ),
        Step(
            FILES,
            Scope.RUNTIME,
            {"seed": plan.disk("seed").path},
            lambda: ports.disks.write_launch_files(plan, environment, secrets),
            Reason.GUEST_PREPARE_FAILED,
        ),
        Step(
            TAP,
            Scope.RUNTIME,
            {"tap": tap, "mark": owner},
            lambda: ports.network.make_tap(network, owner),
            Reason.LAUNCHER_SPAWN_FAILED,
        ),
        Step(
            FIREWALL,
            Scope.RUNTIME,
            {"tap": tap},
            lambda: ports.network.load_rules(network, owner),
            Reason.LAUNCHER_SPAWN_FAILED,
        ),
        Step(
            MACHINE,
            Scope.RUNTIME,
            {"domain": plan.domain},
            lambda: ports.hypervisor.start(plan, owner),
            Reason.LAUNCHER_SPAWN_FAILED,
        ),
    ]


class Undoer:
    """Gives back one ledger entry, in whatever process. Idempotent."""

    def __init__(
        self, ports: Ports, pool: AddressPool, run_hook: Callable[..., Awaitable[None]]
    ) -> None:
        self._ports = ports
        self._pool = pool
        self._run_hook = run_hook

    async def undo(
        self, record: SandboxRecord, ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        """Undo by key; see the steps above for what `data` holds."""
        data, ports = held.data, self._ports
        if held.key.startswith((RUN, STAY)):
            await self._run_hook(record, ledger, held, reason)
        elif held.key == MACHINE:
            await ports.hypervisor.destroy(data["domain"])
        elif held.key == FIREWALL:
            await ports.network.remove_rules(data["tap"])
        elif held.key == TAP:
            await ports.network.remove_tap(data["tap"], data["mark"])
        elif held.key == FILES:
            # The status disk and the console stay: they say how it ended. The seed
            # holds secrets.
            await ports.disks.remove(data["seed"])
        elif held.key == OVERLAY:
            await ports.disks.remove(data["path"])
        elif held.key == LEASE:
            self._pool.free(record.id)
        else:
            raise LookupError(f"no undo for ledger entry {held.key}")
