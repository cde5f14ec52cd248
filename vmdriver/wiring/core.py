"""All parts of the core, and what each is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmdriver.host.threads import Threads
from vmdriver.lifecycle.control.admission import Admission
from vmdriver.lifecycle.control.device_news import DeviceWatch
from vmdriver.lifecycle.control.folder_news import FolderWatch
from vmdriver.lifecycle.control.image_upkeep import ImageUpkeep
from vmdriver.lifecycle.control.last_flush import LastFlush
from vmdriver.lifecycle.control.maintenance import Housekeeping
from vmdriver.lifecycle.control.manager import Manager
from vmdriver.lifecycle.control.network_news import NetworkReporter
from vmdriver.lifecycle.control.recover import Recovery
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.control.set_aside import Shelf
from vmdriver.lifecycle.control.volume_jobs import VolumeJobs
from vmdriver.lifecycle.engine.broadcast import Broadcaster
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.engine.resource import Resources
from vmdriver.lifecycle.extending.notes import PREFIXES, ExtensionEntries
from vmdriver.lifecycle.extending.participants import Participant
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.extending.subject import subject_of
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.devices import DevicePool, Devices, passed_devices
from vmdriver.lifecycle.launch.host_mounts import HostMounts, host_mounts_part
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import AddressLease, Layers, launch_parts
from vmdriver.lifecycle.launch.supervisor import Supervisor
from vmdriver.lifecycle.launch.users import UserLease, UserPool
from vmdriver.lifecycle.launch.volumes import Volumes, volumes_part
from vmdriver.lifecycle.launch.wall import Wall
from vmdriver.lifecycle.memory.kept_memory import KeptMemory
from vmdriver.lifecycle.memory.resources import memory_resources
from vmdriver.lifecycle.memory.volumes_back import VolumesBack
from vmdriver.lifecycle.ports.host import (
    AcceleratorChoice,
    Guard,
    JournalOpener,
    WallSource,
    no_crash_point,
)
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.build import TemplateMaker
from vmdriver.lifecycle.templates.leftovers import Leftovers
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.wiring.workforce import Workforce


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
        wall_sources: Sequence[WallSource],
        paths: Paths,
        files: Threads,
        addresses: AddressPool,
        users: UserPool,
        installed: Installed,
        templates_directory: str,
        warm_directory: str,
        crash_point: Guard = no_crash_point,
        watch_limit: int = 1024,
        retry_s: float = 0.5,
    ) -> None:
        """`journals` opens a sandbox's ledger. `crash_point` is passed at each step of one.
        `retry_s`: until what belongs to no sandbox is given back for the second time.
        """
        self._ports, self._settings, self._paths = ports, settings, paths
        self._journals, self._crash_point = journals, crash_point
        self._files, self.addresses, self.users = files, addresses, users
        self.sandboxes = sandboxes = Sandboxes()
        self.broadcaster = Broadcaster(sandboxes.statuses, watch_limit)
        self.extensions = self._extensions(installed)
        self.layers = Layers(ports.disks, sandboxes.layers_of_others)
        self.devices = self._devices(accelerator)
        passed = passed_devices(ports.host_devices, self.devices.pool)
        holds = sandboxes.holds_volume
        self.volumes = Volumes(store=ports.volumes, settings=settings, holds=holds)
        self.volumes_back = VolumesBack(self.volumes, ports.volume_copies, ports.disks)
        self.host_mounts = HostMounts(host=ports.host_folders, settings=settings)
        mounted = volumes_part(self.volumes), host_mounts_part(ports.host_folders)
        self.parts = launch_parts(ports, self.layers, passed, *mounted)
        self.lease = AddressLease(addresses, ports.network)
        self.user = UserLease(users, ports.machine_users)
        self.wall = Wall(wall_sources, settings.isolation)
        self.resources = self._resources()
        self.leftovers = Leftovers(ports, self.resources, addresses, retry_s)
        self.budget = MemoryBudget(
            sandboxes.records, settings, self.leftovers.memory_mib
        )
        self.launcher = self._launcher(accelerator)
        self.templates = self._templates(templates_directory)
        self.warm_pool = self._warm_pool(warm_directory)
        self.workforce = self._workforce()
        self.manager = self._manager()

    @property
    def last_flush(self) -> LastFlush:
        """What is done before a host is shut down."""
        return LastFlush(sandboxes=self.sandboxes, guest=self._ports.guest)

    def _devices(self, accelerator: AcceleratorChoice) -> Devices:
        return Devices(
            host=self._ports.host_devices,
            accelerator=accelerator,
            allowed=self._settings.passthrough_devices,
            records=self.sandboxes.records,
            pool=DevicePool(),
        )

    def _resources(self) -> Resources:
        """Every kind of thing that a ledger may hold."""
        ports, undo = self._ports, self.extensions.undo
        kept = memory_resources(ports)
        extensions = [ExtensionEntries(prefix, undo) for prefix in PREFIXES]
        leases = self.lease, self.user
        back = self.volumes_back
        return Resources([*leases, *self.parts, *kept, back, *extensions])

    def _workforce(self) -> Workforce:
        return Workforce(
            ports=self._ports,
            settings=self._settings,
            paths=self._paths,
            addresses=self.addresses,
            user=self.user,
            sandboxes=self.sandboxes,
            broadcaster=self.broadcaster,
            extensions=self.extensions,
            resources=self.resources,
            layers=self.layers,
            launcher=self.launcher,
            budget=self.budget,
            templates=self.templates,
            warm_pool=self.warm_pool,
            volumes=self.volumes,
            volumes_back=self.volumes_back,
        )

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
        ports, settings = self._ports, self._settings
        return Launcher(
            images=ports.images,
            hypervisor=ports.hypervisor,
            network=ports.network,
            records=ports.records,
            settings=settings,
            extensions=self.extensions,
            accelerator=accelerator,
            paths=self._paths,
            lease=self.lease,
            user=self.user,
            wall=self.wall,
            files=self._files,
            supervisor=Supervisor(
                settings, ports.images, ports.supervisor_disks, ports.gateway
            ),
            budget=self.budget,
            devices=self.devices,
            parts=self.parts,
            volumes=self.volumes,
            host_mounts=self.host_mounts,
        )

    def _templates(self, directory: str) -> Templates:
        maker = TemplateMaker(
            ports=self._ports,
            settings=self._settings,
            paths=self._paths,
            lease=self.lease,
            user=self.user,
            wall=self.wall,
            parts=self.parts,
            budget=self.budget,
            leftovers=self.leftovers,
        )
        templates = Templates(
            ports=self._ports,
            settings=self._settings,
            paths=self._paths,
            maker=maker,
            records=self.sandboxes.needing_layers,
            layers_of_unread=self.sandboxes.layers_of_unread,
            directory=directory,
            leftovers=self.leftovers,
        )
        self.sandboxes.claim(templates.layers)
        return templates

    def _warm_pool(self, directory: str) -> WarmPool:
        warm_pool = WarmPool(
            ports=self._ports,
            settings=self._settings,
            paths=self._paths,
            lease=self.lease,
            user=self.user,
            wall=self.wall,
            parts=self.parts,
            templates=self.templates,
            directory=directory,
            leftovers=self.leftovers,
            budget=self.budget,
        )
        self.sandboxes.claim(warm_pool.layers)
        return warm_pool

    def ledger(self, sandbox_id: str) -> Ledger:
        """A sandbox's. StorageError."""
        return Ledger(self._journals(sandbox_id), self._crash_point)

    def _shelf(self) -> Shelf:
        return Shelf(
            sandboxes=self.sandboxes,
            ports=self._ports,
            paths=self._paths,
            addresses=self.addresses,
            users=self.users,
            devices=self.devices.pool,
            instance=self._settings.instance,
            resources=self.resources,
            journals=self._journals,
            open=self.ledger,
        )

    def _recovery(self, shelf: Shelf) -> Recovery:
        return Recovery(
            sandboxes=self.sandboxes,
            shelf=shelf,
            hire=self.workforce.hire,
            broadcaster=self.broadcaster,
            ports=self._ports,
            paths=self._paths,
            extensions=self.extensions,
            templates=self.templates,
            users=self.users,
            volumes=self.volumes,
        )

    def _manager(self) -> Manager:
        ports, settings, sandboxes = self._ports, self._settings, self.sandboxes
        shelf = self._shelf()
        return Manager(
            sandboxes=sandboxes,
            settings=settings,
            hypervisor=ports.hypervisor,
            broadcaster=self.broadcaster,
            extensions=self.extensions,
            templates=self.templates,
            warm_pool=self.warm_pool,
            budget=self.budget,
            snapshot_jobs=self.workforce.snapshots,
            admission=self._admission(),
            recovery=self._recovery(shelf),
            images=self._image_upkeep(),
            volume_jobs=VolumeJobs(volumes=self.volumes),
            housekeeping=Housekeeping(
                sandboxes.workers.values,
                shelf.consoles,
                ports.hypervisor,
                ports.disks,
                ports.records,
                settings,
                self.workforce.snapshots,
                DeviceWatch(self.devices, sandboxes),
                FolderWatch(ports.host_folders, sandboxes),
            ),
            network_reporter=NetworkReporter(sandboxes, ports.network_guard),
        )

    def _admission(self) -> Admission:
        return Admission(
            sandboxes=self.sandboxes,
            ledger=self.ledger,
            hire=self.workforce.hire,
            settings=self._settings,
            images=self._ports.images,
            records=self._ports.records,
            extensions=self.extensions,
            budget=self.budget,
            devices=self.devices,
            layers=self.layers,
            volumes=self.volumes,
            host_mounts=self.host_mounts,
            allow_fork=self.workforce.snapshots.allow_fork,
        )

    def _image_upkeep(self) -> ImageUpkeep:
        ports, sandboxes = self._ports, self.sandboxes
        return ImageUpkeep(
            ports,
            self._settings,
            sandboxes.records,
            self.templates.plans,
            KeptMemory(ports.memory_store, self._paths),
            lambda: not sandboxes.set_aside and ports.records.all_there(),
        )
