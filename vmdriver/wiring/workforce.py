"""What workers do: the actions of all rooms, made once, and a worker for each sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.broadcast import Broadcaster
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.engine.observer import Observer
from vmdriver.lifecycle.engine.resource import Resources
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.standstill import Waker
from vmdriver.lifecycle.engine.worker import Act, AtRest, First, Worker
from vmdriver.lifecycle.extending.notes import is_extensions
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.extending.told import Told
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.ended import Ended
from vmdriver.lifecycle.launch.launch import Beginnings, Launch
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.network_hold import NetworkHold
from vmdriver.lifecycle.launch.resources import Layers
from vmdriver.lifecycle.launch.stop import Stop
from vmdriver.lifecycle.launch.users import UserLease
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.memory.capture import Capture
from vmdriver.lifecycle.memory.layers import LayerUpkeep
from vmdriver.lifecycle.memory.loadable import Loading
from vmdriver.lifecycle.memory.resume import Resume
from vmdriver.lifecycle.memory.snapshot import Snapshots
from vmdriver.lifecycle.memory.snapshot_volumes import SnapshotVolumes
from vmdriver.lifecycle.memory.streaming import Streaming
from vmdriver.lifecycle.memory.suspend import Suspend
from vmdriver.lifecycle.memory.volumes_back import VolumesBack
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.fork import Forks
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model.condition import Standstill, network_standstill
from vmdriver.model.phase import Action, MachineState
from vmdriver.model.record import SandboxRecord

_THERE = {MachineState.READY, MachineState.STALLED, MachineState.BOOTING}


class Workforce:
    """Makes the workers of a driver, who all do the same."""

    def __init__(
        self,
        *,
        ports: Ports,
        settings: Settings,
        paths: Paths,
        addresses: AddressPool,
        user: UserLease,
        sandboxes: Sandboxes,
        broadcaster: Broadcaster,
        extensions: ExtensionRunner,
        resources: Resources,
        layers: Layers,
        launcher: Launcher,
        budget: MemoryBudget,
        templates: Templates,
        warm_pool: WarmPool,
        volumes: Volumes,
        volumes_back: VolumesBack,
    ) -> None:
        self._ports, self._settings, self._paths = ports, settings, paths
        self._volumes, self._volumes_back = volumes, volumes_back
        self._sandboxes, self._broadcaster, self._extensions = (
            sandboxes,
            broadcaster,
            extensions,
        )
        self._layers, self._launcher, self._budget = layers, launcher, budget
        self._observer = Observer(hypervisor=ports.hypervisor, disks=ports.disks)
        self._warm_pool = warm_pool
        self._giving_back = GivingBack(
            resources=resources, is_owed=is_extensions, freed=warm_pool.refill
        )
        self._told = Told(extensions=extensions)
        self._capture = Capture(
            ports=ports,
            paths=paths,
            giving_back=self._giving_back,
            saved=extensions.saved,
            freeze_timeout_s=settings.freeze_timeout_s,
        )
        self.snapshots = self._snapshots()
        forks = self._forks(templates, addresses, user)
        self._actions, self._first, self._at_rest = self._doings(forks)

    def _forks(
        self,
        templates: Templates,
        addresses: AddressPool,
        user: UserLease,
    ) -> Forks:
        ports, settings = self._ports, self._settings
        return Forks(
            templates=templates,
            warm_pool=self._warm_pool,
            hypervisor=ports.hypervisor,
            network=ports.network,
            guard=ports.network_guard,
            launch_files=ports.launch_files,
            memory=ports.memory,
            memory_store=ports.memory_store,
            guest=ports.guest,
            addresses=addresses,
            user=user,
            paths=self._paths,
            instance=settings.instance,
            restore_timeout_s=settings.restore_timeout_s,
        )

    def hire(self, record: SandboxRecord, ledger: Ledger) -> Worker:
        """A worker for a sandbox, which does not run yet."""
        ports = self._ports
        sandbox = Sandbox(
            record,
            ledger,
            records=ports.records,
            broadcaster=self._broadcaster,
            abandon=ports.hypervisor.abandon,
        )
        return Worker(
            sandbox,
            self._actions,
            first=self._first,
            at_rest=self._at_rest,
            observer=self._observer,
            waker=Waker(
                hypervisor=ports.hypervisor, memory=ports.memory, disks=ports.disks
            ),
            why_held=self._why_held,
            recheck_s=self._settings.recheck_s,
        )

    def _why_held(self, sandbox: Sandbox, machine: MachineState) -> Standstill | None:
        """Why a machine that is there is not let go on."""
        if machine not in _THERE:
            return None
        for_network = network_standstill(sandbox.record)
        ready = machine is MachineState.READY
        return for_network or (self._capture.why_held(sandbox) if ready else None)

    def _hold(self) -> NetworkHold:
        ports = self._ports
        return NetworkHold(
            guard=ports.network_guard,
            hypervisor=ports.hypervisor,
            memory=ports.memory,
            instance=self._settings.instance,
        )

    def _launch(
        self, beginnings: Beginnings, ended: Ended, hold: NetworkHold
    ) -> Launch:
        ports, settings = self._ports, self._settings
        return Launch(
            launcher=self._launcher,
            beginnings=beginnings,
            ended=ended,
            observer=self._observer,
            giving_back=self._giving_back,
            extensions=self._extensions,
            told=self._told,
            budget=self._budget,
            images=ports.images,
            hold=hold,
            disks=ports.disks,
            boot_timeout_s=settings.boot_timeout_s,
        )

    def _snapshots(self) -> Snapshots:
        return Snapshots(
            ports=self._ports,
            paths=self._paths,
            settings=self._settings,
            capture=self._capture,
            streaming=Streaming(
                memory=self._ports.memory,
                capture=self._capture,
                live=self._settings.live_snapshots,
            ),
            extensions=self._extensions,
            giving_back=self._giving_back,
            layers=self._layers,
            volumes=SnapshotVolumes(
                ports=self._ports, paths=self._paths, volumes=self._volumes
            ),
            volumes_back=self._volumes_back,
            budget=self._budget,
            on_host=self._sandboxes.host_snapshots,
        )

    def _suspend(self) -> Suspend:
        return Suspend(
            memory=self._ports.memory,
            store=self._ports.memory_store,
            paths=self._paths,
            capture=self._capture,
            observer=self._observer,
            extensions=self._extensions,
            giving_back=self._giving_back,
        )

    def _resume(self) -> Resume:
        return Resume(
            ports=self._ports,
            paths=self._paths,
            settings=self._settings,
            launcher=self._launcher,
            loading=Loading(
                ports=self._ports, settings=self._settings, launcher=self._launcher
            ),
            extensions=self._extensions,
            giving_back=self._giving_back,
            make_room=self._warm_pool.keep_within,
            restored=self._told.restored,
        )

    def _upkeep(self) -> LayerUpkeep:
        return LayerUpkeep(
            ports=self._ports,
            paths=self._paths,
            layers=self._layers,
            of_others=self._sandboxes.layers_of_others,
        )

    def _stop(self) -> Stop:
        ports = self._ports
        return Stop(
            capture=self._capture,
            giving_back=self._giving_back,
            hypervisor=ports.hypervisor,
            guest=ports.guest,
            disks=ports.disks,
            layers=self._layers,
            forget=self._sandboxes.forget,
            grace_s=self._settings.stop_grace_s,
        )

    def _doings(
        self, beginnings: Beginnings
    ) -> tuple[Mapping[Action, Act], Sequence[First], Sequence[AtRest]]:
        """All that workers do. At rest: what may fail and be tried again before what takes long."""
        ended = Ended(
            disks=self._ports.disks,
            giving_back=self._giving_back,
            crash_restarts=self._settings.crash_restarts,
        )
        hold, stop = self._hold(), self._stop()
        launch = self._launch(beginnings, ended, hold)
        suspend, upkeep = self._suspend(), self._upkeep()
        actions: Mapping[Action, Act] = {
            Action.LAUNCH: launch.launch,
            Action.AWAIT_READY: launch.await_ready,
            Action.CONFIRM_RUNNING: launch.confirm_running,
            Action.RECORD_END: ended.record_end,
            Action.RECOVER_LOST: ended.recover_lost,
            Action.CLEAN_UP: ended.clean_up,
            Action.STOP: stop.stop,
            Action.SUSPEND: suspend.suspend,
            Action.RESUME: self._resume().resume,
            Action.DELETE: stop.delete,
        }
        first = (
            self._capture.go_on_if_stale,
            hold.settle,
            suspend.drop_memory_if_cold,
            self.snapshots.revert_if_due,
        )
        at_rest = (
            launch.adopt,
            self._told.what_is_due,
            self._giving_back.again,
            upkeep.tidy,
            upkeep.merge_if_due,
        )
        return actions, first, at_rest
