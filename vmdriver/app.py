"""The composition root: the only place that knows concrete classes. Turns a
configuration into a running driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import cached_property
from pathlib import Path

from vmdriver.config import Config
from vmdriver.config.views import (
    image_policy,
    ipv6_pool,
    machine_uids,
    qemu_owner,
    settings_from,
)
from vmdriver.devices.host_devices import SysfsDevices
from vmdriver.errors import ConfigError, DriverError
from vmdriver.extensions.loader import load_extensions, participants
from vmdriver.folders.host_folders import VirtiofsFolders
from vmdriver.host import facts
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.guardian import Charge
from vmdriver.host.guarding import Guardian
from vmdriver.host.lanes import Lanes
from vmdriver.host.threads import Threads
from vmdriver.hypervisor import qemu_process
from vmdriver.hypervisor.abilities import Abilities, kind_of
from vmdriver.hypervisor.connection import Connection
from vmdriver.hypervisor.embedded import (
    embed_uri,
    make_way,
    remove_torn_definitions,
    write_embedded_configuration,
)
from vmdriver.hypervisor.guest_agent import GuestAgent
from vmdriver.hypervisor.guest_programs import AgentPrograms
from vmdriver.hypervisor.kvm.accelerator import AcceleratorProbe
from vmdriver.hypervisor.kvm.trial import Trial
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.memory.machine_memory import DomainMemory
from vmdriver.hypervisor.questions.trial import QuestionsTrial
from vmdriver.hypervisor.reserve import Reserve
from vmdriver.hypervisor.run_state import (
    forget_earlier_boot,
    forget_ended_machines,
    forget_unstarted_machines,
)
from vmdriver.hypervisor.wall.box_trial import DAEMON_SETTINGS, BoxTrial
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.hypervisor.wall.cgroup_place import Place, find_place
from vmdriver.hypervisor.wall.cgroups import Cgroups, device_of
from vmdriver.hypervisor.wall.monitor_filter import MonitorFilter
from vmdriver.hypervisor.wall.sealing import Sealing
from vmdriver.lifecycle.extending.participants import Registered
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.users import UserPool
from vmdriver.lifecycle.ports.host import Ownership, WallSource
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.passage import DIRECT, Passage
from vmdriver.model.wall import joined
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.moved_tap import Entrance
from vmdriver.network.names.named import NamedNetworks
from vmdriver.network.namespace_offer import NamespaceOffer
from vmdriver.oci.image_service import ImageService
from vmdriver.service.gateway import GatewayService
from vmdriver.storage.checkpoints import Checkpoints
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layers.machine_users import MachineUsers
from vmdriver.storage.layers.possession import Possession
from vmdriver.storage.layers.uid_check import check_uids
from vmdriver.storage.layout import Layout
from vmdriver.storage.paths import FilePaths
from vmdriver.storage.programs.supervisors import SupervisorDisks
from vmdriver.storage.sandboxes import wall_found
from vmdriver.storage.sandboxes.journal import FileJournal
from vmdriver.storage.sandboxes.launch_files import LaunchFiles
from vmdriver.storage.sandboxes.records import RecordStore
from vmdriver.storage.volume_copies import VolumeCopies
from vmdriver.storage.volumes import Volumes
from vmdriver.storage.way_in import open_way_in
from vmdriver.wiring import Core, Installed

_log = logging.getLogger(__name__)


class Driver:
    """Everything of one driver process, wired. `passage`: see open_driver; without one, libvirt
    must not be used. `why`: machines get no new numbers, for that.
    """

    def __init__(
        self, config: Config, passage: Passage = DIRECT, why: ConfigError | None = None
    ) -> None:
        self.config = config
        self.passage = passage
        self.settings = settings_from(config)
        self.layout = Layout(config.driver.state_dir)
        owner = qemu_owner(config)
        self._files = Threads("files", 8)
        self._numbers = UserNamespace()
        self.embedded = config.driver.connection == "embed"
        self.libvirt_root = Path(passage.theirs(str(self.layout.libvirt)))
        uri = (
            embed_uri(self.libvirt_root) if self.embedded else config.driver.connection
        )
        self.connection = Connection(uri, Lanes("libvirt"))
        self.charge = self._charge(uri)
        self._guardian = Guardian(self.charge)
        self._possession = Possession(self.layout, owner)
        self.disks = DiskStore(self.layout, self._files, owner)
        self.cgroups = self._cgroups(uri)
        self.users = UserPool(machine_uids(config), why)
        self.box_trial = self._box_trial()
        self.network = self._network(owner)
        self.network_guard = NamedNetworks.of(self.network, self._files)
        self.sealing = Sealing(self.libvirt_root)
        self.monitor_filter = MonitorFilter(self.libvirt_root)
        self.abilities = Abilities(self.connection, owner)
        self.questions = self._questions()
        self.machines, self.memory = self._machines()
        self.wall_sources = self._wall_sources()
        self.launch_files = LaunchFiles(self.layout, self._files, owner)
        self.supervisors = SupervisorDisks(
            self.layout, self._files, numbers=self._numbers
        )
        self.images = ImageService(
            self.layout.images,
            self._files,
            image_policy(config),
            numbers=self._numbers,
        )
        self.records = RecordStore(self.layout, self._files)
        self.checkpoints = Checkpoints(self._files, owner, self.layout.clearing)
        self.paths = FilePaths(self.layout)
        self._warm_up: asyncio.Task[None] | None = None
        self.accelerator = self._accelerator()
        self.core = self._core()
        self.broadcaster, self.manager = self.core.broadcaster, self.core.manager

    def _wall_sources(self) -> tuple[WallSource, ...]:
        apart = NamespaceOffer(not self.embedded, self.box_trial)
        return self.box_trial, apart, self.memory, self.cgroups

    def _box_trial(self) -> BoxTrial:
        boxes = Boxes(self.layout.libvirt, self.passage)
        name, probe = f"{self.config.driver.instance}-trial", self.users.uids.probe
        daemon = None if self.embedded else DAEMON_SETTINGS
        owner = Ownership(probe.uid, probe.gid)
        return BoxTrial(boxes, self._files, name, owner, daemon)

    def _questions(self) -> QuestionsTrial:
        probe = self.users.uids.probe
        return QuestionsTrial(
            connection=self.connection,
            abilities=self.abilities,
            boxes=self.box_trial.boxes,
            name=f"{self.config.driver.instance}-questions",
            owner=Ownership(probe.uid, probe.gid),
            results=self.layout.questions,
        )

    def _machines(self) -> tuple[Machines, DomainMemory]:
        connection, passage = self.connection, self.passage
        instance, check = self.config.driver.instance, self.disks.check_layers
        groups, boxes = self.cgroups, self.box_trial.boxes
        around = Entrance(self.network_guard).around
        machines = Machines(
            connection,
            instance,
            self.abilities,
            passage,
            check,
            groups,
            boxes,
            around,
            self.questions.spared,
        )
        memory = DomainMemory(
            connection,
            self._files,
            self.sealing,
            passage,
            check,
            groups,
            machines.emulator,
            around,
            self.questions.spared,
        )
        return machines, memory

    def _core(self) -> Core:
        config, layout = self.config, self.layout
        installed = Installed(
            participants(load_extensions(config.extending.extensions, Registered)),
            config.extending.extension,
            frozenset(config.extending.request_parameters),
            config.gateway.driver_name,
        )
        return Core(
            ports=self.ports(),
            settings=self.settings,
            journals=lambda sandbox_id: FileJournal(
                layout.sandbox(sandbox_id).ledger, self._files
            ),
            accelerator=self.accelerator,
            paths=self.paths,
            files=self._files,
            wall_sources=self.wall_sources,
            addresses=AddressPool(
                config.driver.instance, config.network.address_pool, spread=True
            ),
            users=self.users,
            installed=installed,
            templates_directory=str(layout.templates),
            warm_directory=str(layout.warm),
        )

    def _cgroups(self, uri: str) -> Cgroups:
        """A daemon of libvirt's has cgroups of its own for machines."""
        driver = self.config.driver
        place = Place(None, "libvirt's daemon has machines in cgroups of its own")
        if self.embedded:
            place = find_place(self.config.isolation.machine_cgroup)
        run = qemu_process.run_directory(uri)
        return Cgroups(place, driver.instance, device_of(driver.state_dir), run)

    def _accelerator(self) -> AcceleratorProbe:
        config, layout, probe = self.config, self.layout, self.users.uids.probe
        trial = Trial(
            self.machines,
            config.driver.instance,
            layout.probe,
            Ownership(probe.uid, probe.gid),
            config.driver.probe_deadline_s,
        )
        return AcceleratorProbe(
            self.machines,
            config.driver.accelerator,
            self.paths.boot,
            layout.accelerator,
            trial,
        )

    def _network(self, owner: Ownership) -> HostNetwork:
        instance, network = self.config.driver.instance, self.config.network
        six = ipv6_pool(self.config) if network.egress_ipv6 else ""
        pool = network.address_pool
        return HostNetwork(instance, owner, self._files, pool, ipv6_pool=six)

    def _charge(self, uri: str) -> Charge:
        roots = self._libvirt_names(uri) if self.embedded else ()
        return Charge(self.config.driver.state_dir, self.layout.lock, roots)

    def _libvirt_names(self, uri: str) -> tuple[str, ...]:
        """Every name by which libvirt, of this driver or an earlier one, may call its root."""
        root = str(self.layout.libvirt)
        earlier = Passage(ways=self.passage.known).theirs(root)
        return tuple({root, str(self.libvirt_root), earlier, uri.partition("root=")[2]})

    def ports(self) -> Ports:
        """Every outside world."""
        return Ports(
            self.machines,
            self.network,
            self.disks,
            self.launch_files,
            self.supervisors,
            self.images,
            self.records,
            self.memory,
            GuestAgent(self.connection),
            self.checkpoints,
            self.network_guard,
            MachineUsers(self.layout, self._files),
            GatewayService(self.settings.endpoint, self.settings.tls),
            SysfsDevices(),
            Volumes(self.layout, self._files, numbers=self._numbers),
            self.folders,
            VolumeCopies(self.layout, self._files, qemu_owner(self.config)),
        )

    @cached_property
    def folders(self) -> VirtiofsFolders:
        """Folders of the host for machines."""
        instance, probe = self.config.driver.instance, self.users.uids.probe
        return VirtiofsFolders(self.layout.sandboxes, instance, probe)

    @property
    def programs(self) -> AgentPrograms:
        """Operators' commands in guests."""
        return AgentPrograms(GuestAgent(self.connection))

    async def recover(self) -> None:
        """Prepare the host and take up what there is."""
        await self._guardian.start()
        if await self._files.run(self.charge.end_predecessors):
            _log.warning("programs of an earlier driver were still running: ended")
        reserve = Reserve(self.libvirt_root)
        if self.embedded:
            reserve.give_back()
            await self._files.run(self.cgroups.prepare)
            await self.prepare_connection()
            await reserve.enough()
        await self.sealing.prepare()
        await self._try_wall()
        await self.network.prepare()
        self.network_guard.open()
        await self.images.open()
        await self.supervisors.open()
        gid = self.users.uids.shared_gid
        await self._files.run(self._possession.share_disks, gid)
        await self.manager.recover()
        if self.embedded:
            await self._files.run(reserve.take)
        self.accelerator.start()
        # libvirt asks QEMU what it can do at the first question; nobody should wait for that.
        self._warm_up = asyncio.create_task(self._know_the_hypervisor(), name="warm-up")

    async def _try_wall(self) -> None:
        """What is lacking is told again by each start that is refused for it."""
        found = joined([await source.offer(None) for source in self.wall_sources])
        for lack in found.lacks:
            _log.warning("machines cannot have %s: %s", lack.part, lack.why)
        with contextlib.suppress(OSError):  # on a full disk
            await self._files.run(wall_found.store, self.layout.wall, found)

    async def _know_the_hypervisor(self) -> None:
        with contextlib.suppress(DriverError):
            accelerator = await self.accelerator.chosen()
            await self.machines.versions(accelerator)
            await self.questions.spared(kind_of(accelerator))

    async def prepare_connection(self) -> None:
        """Before the first call to libvirt, with the lock held."""
        if self.embedded:
            make_way(self.layout.libvirt, self.layout.clearing)
            offer = await self.box_trial.offer(None)
            write_embedded_configuration(
                self.layout.libvirt,
                self.config.driver.qemu_user,
                self.config.driver.qemu_group,
                self.layout.clearing,
                own_cgroups=bool(self.cgroups.controllers),
                boxed="box" in offer.parts,
            )
            remove_torn_definitions(self.libvirt_root)
            forget_earlier_boot(self.libvirt_root, facts.boot_id())
            forget_ended_machines(self.libvirt_root)
            forget_unstarted_machines(self.libvirt_root)
            await self.monitor_filter.prepare()

    def release_threads(self) -> None:
        """Give the threads back."""
        self._files.close()

    async def close(self) -> None:
        """Let everything go; machines stay."""
        self._guardian.leave()
        if self._warm_up is not None:
            self._warm_up.cancel()
        await self.accelerator.close()
        await self.questions.close()
        await self.manager.close()
        await self.network_guard.close()
        await self.images.close()
        self._numbers.close()
        self.release_threads()


async def open_driver(config: Config) -> Driver:
    """A driver whose QEMU can reach its files. With the state directory's lock held, in the main
    thread, before anything else works there. ConfigError where there is no way.
    """
    layout, uids = Layout(config.driver.state_dir), machine_uids(config)
    taken = await asyncio.to_thread(check_uids, layout, uids)
    if taken is not None:
        _log.error("no sandbox gets a machine of its own any more: %s", taken.text())
    embedded = config.driver.connection == "embed"
    # Every machine's user is as much of a stranger to the folders above ours as this one.
    probe = Ownership(uids.probe.uid, uids.probe.gid)
    passage = await open_way_in(layout, probe, embedded=embedded)
    for ours, theirs in passage.ways:
        _log.info("QEMU comes to %s through %s, its own mount", ours, theirs)
    return Driver(config, passage, taken)
