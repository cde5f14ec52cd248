"""The core, wired: what each part of the lifecycle is given. It knows no adapter: the worlds that
it works on are given to it, real ones by vmdriver.app.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmdriver.host.threads import Pool
from vmdriver.lifecycle.control.admission import Admission
from vmdriver.lifecycle.control.image_upkeep import ImageUpkeep
from vmdriver.lifecycle.control.maintenance import Housekeeping
from vmdriver.lifecycle.control.manager import Manager
from vmdriver.lifecycle.control.recover import Recovery
from vmdriver.lifecycle.control.resources import every_resource
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.control.set_aside import Shelf
from vmdriver.lifecycle.engine.broadcast import Hub
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.hold import Shared
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.engine.observer import Observer
from vmdriver.lifecycle.engine.worker import SandboxWorker
from vmdriver.lifecycle.extending.notes import is_extensions
from vmdriver.lifecycle.extending.participants import Participant
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.extending.subject import subject_of
from vmdriver.lifecycle.extending.told import Told
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.supervisor import Supervisor
from vmdriver.lifecycle.memory.capture import Capture
from vmdriver.lifecycle.memory.kept_memory import KeptMemory
from vmdriver.lifecycle.memory.layers import LayerUpkeep
from vmdriver.lifecycle.memory.resume import Resume
from vmdriver.lifecycle.memory.snapshot import Snapshots
from vmdriver.lifecycle.memory.suspend import Suspend
from vmdriver.lifecycle.ports.host import (
    AcceleratorChoice,
    Guard,
    JournalOpener,
    no_checkpoint,
)
from vmdriver.lifecycle.ports.paths import Places
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.leftovers import Leftovers
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model.record import SandboxRecord


@dataclass(frozen=True)
class Installed:
    """Extensions, their configurations by name, those that requests may give parameters to, and
    what they are told the driver is called.
    """

    extensions: Sequence[Participant] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    may_configure: frozenset[str] = frozenset()
    driver: str = ""


class Core:
    """All that carries sandboxes through their lives, on whatever world."""

    def __init__(
        self,
        *,
        ports: Ports,
        settings: Settings,
        journals: JournalOpener,
        accelerator: AcceleratorChoice,
        places: Places,
        files: Pool,
        addresses: AddressPool,
        installed: Installed,
        templates_directory: str,
        warm_directory: str,
        checkpoint: Guard = no_checkpoint,
        watch_limit: int = 1024,
        retry_s: float = 0.5,
    ) -> None:
        """`journals` opens a sandbox's ledger. `checkpoint` is passed at each step of one.
        `retry_s`: until what belongs to no sandbox is given back for the second time.
        """
        self._ports, self._settings, self._places = ports, settings, places
        self._journals, self._checkpoint = journals, checkpoint
        self._files, self.addresses = files, addresses
        self.sandboxes = sandboxes = Sandboxes()
        self.hub = Hub(sandboxes.snapshots, watch_limit)
        self.extensions = self._extensions(installed)
        self.parts, self.undoer = every_resource(
            ports, addresses, sandboxes.layers_of_others, self.extensions.undo
        )
        self.leftovers = Leftovers(ports, self.undoer.resources, addresses, retry_s)
        self.budget = MemoryBudget(
            sandboxes.records, settings, self.leftovers.memory_mib
        )
        self.launcher = self._launcher(accelerator)
        self.templates = self._templates(templates_directory)
        self.warm_pool = self._warm_pool(warm_directory)
        self.giving_back = GivingBack(undo=self.undoer.undo, is_owed=is_extensions)
        self.told = Told(self.extensions)
        self.capture = self._capture()
        self.snapshots = self._snapshots()
        self._shared = self._share()
        self.manager = self._manager()

    def _extensions(self, installed: Installed) -> ExtensionRunner:
        return ExtensionRunner(
            installed.extensions,
            installed.configs,
            self._ports.disks.extension_directory,
            installed.may_configure,
            subject_of=subject_of,
            names=lambda: (installed.driver, ""),
            known=self.sandboxes.staying,
            tell=self.sandboxes.tell_problem,
        )

    def _launcher(self, accelerator: AcceleratorChoice) -> Launcher:
        return Launcher(
            self._ports,
            self._settings,
            self.extensions,
            accelerator,
            self._places,
            self.addresses,
            self._files,
            Supervisor(
                self._settings, self._ports.images, self._ports.supervisor_disks
            ),
            self.budget,
            self.parts,
        )

    def _templates(self, directory: str) -> Templates:
        sandboxes = self.sandboxes
        templates = Templates(
            self._ports,
            self._settings,
            self.launcher,
            sandboxes.needing_layers,
            sandboxes.layers_of_unread,
            directory,
            self.leftovers,
        )
        sandboxes.claim(templates.layers)
        return templates

    def _warm_pool(self, directory: str) -> WarmPool:
        warm_pool = WarmPool(
            self._ports,
            self._settings,
            self.launcher,
            self.templates,
            directory,
            self.leftovers,
        )
        self.sandboxes.claim(warm_pool.layers)
        return warm_pool

    def ledger(self, sandbox_id: str) -> Ledger:
        """A sandbox's. StorageError."""
        return Ledger(self._journals(sandbox_id), self._checkpoint)

    def hire(self, record: SandboxRecord, ledger: Ledger) -> SandboxWorker:
        """A worker for a sandbox, which does not run yet."""
        return SandboxWorker(record, ledger, self._shared)

    def _capture(self) -> Capture:
        return Capture(
            ports=self._ports,
            paths=self._places,
            giving_back=self.giving_back,
            saved=self.extensions.saved,
            freeze_timeout_s=self._settings.freeze_timeout_s,
        )

    def _snapshots(self) -> Snapshots:
        return Snapshots(
            ports=self._ports,
            paths=self._places,
            settings=self._settings,
            capture=self.capture,
            extensions=self.extensions,
            giving_back=self.giving_back,
            layers=self.undoer.layers,
            budget=self.budget,
            on_host=self.sandboxes.host_snapshots,
        )

    def _suspend(self, observer: Observer) -> Suspend:
        return Suspend(
            memory=self._ports.memory,
            store=self._ports.memory_store,
            paths=self._places,
            capture=self.capture,
            observer=observer,
            extensions=self.extensions,
            giving_back=self.giving_back,
        )

    def _resume(self) -> Resume:
        return Resume(
            ports=self._ports,
            paths=self._places,
            settings=self._settings,
            launcher=self.launcher,
            extensions=self.extensions,
            giving_back=self.giving_back,
            restored=self.told.restored,
        )

    def _upkeep(self) -> LayerUpkeep:
        return LayerUpkeep(
            ports=self._ports,
            paths=self._places,
            layers=self.undoer.layers,
            of_others=self.sandboxes.layers_of_others,
        )

    def _share(self) -> Shared:
        ports, sandboxes = self._ports, self.sandboxes
        observer = Observer(hypervisor=ports.hypervisor, disks=ports.disks)
        return Shared(
            ports,
            self._settings,
            self.launcher,
            self.extensions,
            self.undoer,
            self.giving_back,
            observer,
            self.hub,
            sandboxes.forget,
            sandboxes.layers_of_others,
            self.templates,
            self.warm_pool,
            self.capture,
            self._suspend(observer),
            self._resume(),
            self.snapshots,
            self._upkeep(),
        )

    def _shelf(self) -> Shelf:
        return Shelf(
            sandboxes=self.sandboxes,
            ports=self._ports,
            places=self._places,
            addresses=self.addresses,
            instance=self._settings.instance,
            resources=self.undoer.resources,
            journals=self._journals,
            open=self.ledger,
        )

    def _manager(self) -> Manager:
        ports, settings, sandboxes = self._ports, self._settings, self.sandboxes
        shelf = self._shelf()
        admission = Admission(
            sandboxes=sandboxes,
            ledger=self.ledger,
            hire=self.hire,
            settings=settings,
            images=ports.images,
            records=ports.records,
            extensions=self.extensions,
            budget=self.budget,
            undoer=self.undoer,
            allow_fork=self.snapshots.allow_fork,
        )
        recovery = Recovery(
            sandboxes=sandboxes,
            shelf=shelf,
            hire=self.hire,
            hub=self.hub,
            ports=ports,
            places=self._places,
            extensions=self.extensions,
            templates=self.templates,
        )
        return Manager(
            sandboxes=sandboxes,
            settings=settings,
            hypervisor=ports.hypervisor,
            hub=self.hub,
            extensions=self.extensions,
            templates=self.templates,
            warm_pool=self.warm_pool,
            budget=self.budget,
            snapshot_jobs=self.snapshots,
            admission=admission,
            recovery=recovery,
            images=self._image_upkeep(),
            housekeeping=Housekeeping(
                sandboxes.workers.values,
                shelf.consoles,
                ports.disks,
                ports.records,
                settings,
                self.snapshots,
            ),
        )

    def _image_upkeep(self) -> ImageUpkeep:
        ports, sandboxes = self._ports, self.sandboxes
        return ImageUpkeep(
            ports,
            self._settings,
            sandboxes.records,
            self.templates.plans,
            KeptMemory(ports.memory_store, self._places),
            lambda: not sandboxes.set_aside and ports.records.all_there(),
        )
