"""What a launch acquires, in order, and how each is given back. A launch is this list,
not a long function.

The machine is the last step, so whoever finds a running machine knows that everything
else is in place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope
from vmdriver.lifecycle.extending.runner import is_extensions
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.ids import mark
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord, layers_of
from vmdriver.model.runs import Reason

LEASE = "lease"
OVERLAY = "overlay"
FILES = "launch-files"
TAP = "tap"
FIREWALL = "firewall"
_THAW_TIMEOUT_S = 10.0
_UNCONFIRMED_THAW_TIMEOUT_S = 2.0
"""It has had its time to answer when it was to freeze."""
MAPPED = "mapped-memory"
IMAGE_PART = "capture:image"
FROZEN = "capture:frozen"
PAUSED = "capture:paused"
WRITTEN = "capture:memory"
LAYER = "capture:layer"
_NEEDED: Mapping[str, tuple[str, ...]] = {
    OVERLAY: ("path",),
    FILES: ("seed",),
    TAP: ("tap", "mark", "guest_ip"),
    FIREWALL: ("tap",),
    MACHINE: ("domain",),
    MAPPED: ("directory",),
    IMAGE_PART: ("directory",),
    FROZEN: ("domain",),
    PAUSED: ("domain",),
    LAYER: ("path",),
}
"""What the undo of each entry reads in its data."""


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
    may_hang: bool = False
    """A program does it, which may be ended at any time: all or nothing is done, or what is half
    done is replaced the next time.
    """


def _network_steps(ports: Ports, plan: LaunchPlan, owner: str) -> list[Step]:
    network, tap = plan.network, plan.network.lease.tap
    return [
        Step(
            TAP,
            Scope.RUNTIME,
            {"tap": tap, "mark": owner, "guest_ip": network.lease.guest_ip},
            lambda: ports.network.make_tap(network, owner),
            Reason.LAUNCHER_SPAWN_FAILED,
        ),
        Step(
            FIREWALL,
            Scope.RUNTIME,
            {"tap": tap},
            lambda: ports.network.load_rules(network, owner),
            Reason.LAUNCHER_SPAWN_FAILED,
            may_hang=True,
        ),
    ]


def _machine_step(plan: LaunchPlan, start: Callable[[], Awaitable[None]]) -> Step:
    return Step(
        MACHINE,
        Scope.RUNTIME,
        {"domain": plan.domain},
        start,
        Reason.LAUNCHER_SPAWN_FAILED,
    )


def _files_step(plan: LaunchPlan, write: Callable[[], Awaitable[None]]) -> Step:
    return Step(
        FILES,
        Scope.RUNTIME,
        {"seed": plan.disk("seed").path},
        write,
        Reason.GUEST_PREPARE_FAILED,
    )


def overlay_step(ports: Ports, plan: LaunchPlan) -> Step:
    """The root disk's own layer."""
    root = plan.disk("root")
    return Step(
        OVERLAY,
        Scope.PERSISTENT,
        {"path": root.path},
        lambda: ports.disks.create_overlay(root),
        Reason.GUEST_PREPARE_FAILED,
        may_hang=True,
    )


def launch_steps(
    ports: Ports,
    instance: str,
    plan: LaunchPlan,
    environment: Mapping[str, str],
    secrets: Mapping[str, bytes],
    start: Callable[[], Awaitable[None]] | None = None,
) -> list[Step]:
    """The steps from a frozen plan to a running machine, which `start` starts: by booting
    unless said otherwise.
    """
    owner = mark(instance, plan.sandbox_id)
    return [
        overlay_step(ports, plan),
        _files_step(
            plan, lambda: ports.disks.write_launch_files(plan, environment, secrets)
        ),
        *_network_steps(ports, plan, owner),
        _machine_step(plan, start or (lambda: ports.hypervisor.start(plan, owner))),
    ]


def claim_steps(
    ports: Ports,
    instance: str,
    plan: LaunchPlan,
    waiting: LaunchPlan,
    environment: Mapping[str, str],
    secrets: Mapping[str, bytes],
    adopt: Callable[[], Awaitable[None]],
) -> list[Step]:
    """The steps that make a waiting machine this sandbox's: everything is there already and
    gets another owner.
    """
    owner, tap = mark(instance, plan.sandbox_id), plan.network.lease.tap
    overlay, (tap_step, rules) = (
        overlay_step(ports, plan),
        _network_steps(ports, plan, owner),
    )

    async def is_there() -> None:
        return

    return [
        replace(overlay, acquire=is_there),
        _files_step(
            plan,
            lambda: ports.disks.take_over_files(waiting, plan, environment, secrets),
        ),
        replace(tap_step, acquire=lambda: ports.network.remark_tap(tap, owner)),
        rules,
        _machine_step(plan, adopt),
    ]


def resume_steps(
    ports: Ports,
    instance: str,
    plan: LaunchPlan,
    secrets: Mapping[str, bytes],
    load: Callable[[], Awaitable[None]],
) -> list[Step]:
    """The steps from a memory image to a machine that is loaded and paused. What its guest
    said last stays on the status disk.
    """
    owner = mark(instance, plan.sandbox_id)
    return [
        _files_step(
            plan,
            lambda: ports.disks.write_resume_files(plan, plan.environment, secrets),
        ),
        *_network_steps(ports, plan, owner),
        _machine_step(plan, load),
    ]


def can_be_undone(held: Held) -> bool:
    """Whether an entry says all that its undo needs."""
    needed = ("extension",) if is_extensions(held.key) else _NEEDED.get(held.key, ())
    return all(isinstance(held.data.get(name), str) for name in needed)


class Undoer:
    """Gives back one ledger entry, in whatever process. Idempotent."""

    def __init__(
        self,
        ports: Ports,
        pool: AddressPool,
        run_hook: Callable[..., Awaitable[None]],
        layers_of_others: Callable[[str], set[str]],
    ) -> None:
        self._ports = ports
        self._pool = pool
        self._run_hook = run_hook
        self._layers_of_others = layers_of_others

    async def undo(
        self, record: SandboxRecord, ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        """Undo by key; see the steps above for what `data` holds."""
        data, ports = held.data, self._ports
        if is_extensions(held.key):
            await self._run_hook(record, ledger, held, reason)
        elif held.key == MACHINE:
            await ports.hypervisor.destroy(data["domain"])
        elif held.key == FIREWALL:
            await ports.network.remove_rules(data["tap"])
        elif held.key == TAP:
            await ports.network.remove_tap(data["tap"], data["mark"])
            if data["guest_ip"]:  # unknown where the record could not be read
                await ports.network.reset_connections(data["guest_ip"])
        elif held.key == FILES:
            # The status disk and the console stay: they say how it ended. The seed
            # holds secrets.
            await ports.disks.remove(data["seed"])
        elif held.key == OVERLAY:
            await self.drop_layers(record.id, {data["path"], *layers_of(record)})
        elif held.key == MAPPED:
            await ports.memory_store.remove(data["directory"])
        elif held.key == LEASE:
            self._pool.free(record.id)
        else:
            await self._undo_capture(record, held)

    async def drop_layers(self, sandbox_id: str, layers: set[str]) -> None:
        """Remove those of these layers that no other sandbox or template stands on."""
        for path in sorted(layers - self._layers_of_others(sandbox_id)):
            await self._ports.disks.remove(path)

    async def _undo_capture(self, record: SandboxRecord, held: Held) -> None:
        """After a capture, whether it came to its end or not, the machine goes on, if it is
        still there.
        """
        data, ports = held.data, self._ports
        if held.key == IMAGE_PART:
            await ports.memory_store.remove(data["directory"])
        elif held.key == FROZEN:
            limit_s = _THAW_TIMEOUT_S if held.done else _UNCONFIRMED_THAW_TIMEOUT_S
            await self._thaw(data["domain"], limit_s)
        elif held.key == PAUSED:
            await ports.memory.go_on(data["domain"])
        elif held.key == LAYER:
            if data["path"] not in record.layers:
                await ports.disks.remove(data["path"])
        elif held.key != WRITTEN:
            raise LookupError(f"no undo for ledger entry {held.key}")

    async def _thaw(self, domain: str, limit_s: float) -> None:
        """Let a frozen workload run, the wall clock set; fine where nothing runs."""
        ports = self._ports
        state = await ports.hypervisor.observe(domain)
        if state is DomainState.STALLED:
            # It would stay frozen when it goes on: now or at the next try.
            await ports.memory.go_on(domain)
        elif state is not DomainState.RUNNING:
            return
        await ports.guest.thaw(domain, limit_s)
