"""The composition root: the only place that knows concrete classes. Turns a
configuration into a running driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from functools import partial
from pathlib import Path

from vmdriver import __version__
from vmdriver.config import WITHOUT_MEANING, Loaded
from vmdriver.config_model import Config
from vmdriver.errors import ConfigError, DriverError
from vmdriver.extensions.loader import load_extensions
from vmdriver.host import facts, reaper
from vmdriver.host.lock import StateLock
from vmdriver.host.threads import Pool
from vmdriver.hypervisor.accelerator import AcceleratorProbe
from vmdriver.hypervisor.connection import Connection
from vmdriver.hypervisor.embedded import (
    embed_uri,
    remove_torn_definitions,
    remove_unstarted_domains,
    write_embedded_configuration,
)
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.memory import DomainMemory
from vmdriver.lifecycle.addresses import AddressPool
from vmdriver.lifecycle.extension_runner import ExtensionRunner
from vmdriver.lifecycle.hold import Shared
from vmdriver.lifecycle.hub import Hub
from vmdriver.lifecycle.launcher import Launcher
from vmdriver.lifecycle.manager import Manager
from vmdriver.lifecycle.phases.activation import Registered
from vmdriver.lifecycle.ports import Ownership
from vmdriver.lifecycle.settings import Settings, TlsFiles
from vmdriver.lifecycle.steps import Ports, Undoer
from vmdriver.lifecycle.supervisor import Supervisor
from vmdriver.lifecycle.templates import Templates
from vmdriver.lifecycle.warm_pool import WarmPool
from vmdriver.network.host_network import HostNetwork
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.store import ImageStore
from vmdriver.service import admin, servicer
from vmdriver.service.server import (
    ADMIN,
    COMPUTE_DRIVER,
    MAX_PATH,
    check_path,
    serve,
)
from vmdriver.service.servicer import ComputeDriver, Identity, Readiness
from vmdriver.storage import boot
from vmdriver.storage.disks import DiskStore
from vmdriver.storage.journal import FileJournal
from vmdriver.storage.layout import Layout
from vmdriver.storage.memory_images import MemoryImages
from vmdriver.storage.places import FilePlaces
from vmdriver.storage.records import RecordStore

_log = logging.getLogger(__name__)
_BACKGROUND_END_S = 2.0
"""For a template's build to clean up, and for the machines that wait; what is left is swept
by the next driver.
"""


def settings_from(config: Config) -> Settings:
    """The core's view of the configuration."""
    tls = None
    if config.guest_tls_ca and config.guest_tls_cert and config.guest_tls_key:
        tls = TlsFiles(config.guest_tls_ca, config.guest_tls_cert, config.guest_tls_key)
    return Settings(
        instance=config.instance,
        state_dir=config.state_dir,
        endpoint=config.openshell_endpoint,
        default_image=config.default_image,
        supervisor=config.supervisor_path,
        supervisor_image=config.supervisor_image,
        tls=tls,
        vcpus=config.vcpus,
        memory_mib=config.mem_mib,
        max_vcpus=max(config.max_vcpus, config.vcpus),
        max_memory_mib=config.max_mem_mib,
        prefetch_default_image=config.prefetch_default_image,
        image_cache_bytes=config.image_cache_mib * 2**20,
        image_cache_s=config.image_cache_days * 86400,
        image_free_floor_bytes=config.image_free_floor_mib * 2**20,
        disk_mib=config.overlay_disk_mib,
        max_disk_mib=max(config.max_disk_mib, config.overlay_disk_mib),
        max_sandboxes=config.max_sandboxes,
        max_committed_memory_mib=config.max_committed_mem_mib,
        stop_grace_s=config.stop_grace_s,
        boot_timeout_s=config.boot_timeout_s,
        crash_restarts=config.crash_restarts,
        egress=config.egress,
        address_pool=config.address_pool,
        dns=facts.name_servers() if config.dns == "auto" else tuple(config.dns),
        sandbox_uid=config.sandbox_uid,
        sandbox_gid=config.sandbox_gid,
        guest_log_level=config.log_level,
        telemetry=config.telemetry,
        on_stop=config.on_stop,
        on_restore_failure=config.on_restore_failure,
        freeze_timeout_s=config.freeze_timeout_s,
        restore_timeout_s=config.restore_timeout_s,
        max_snapshots=config.max_snapshots,
        max_snapshot_bytes=config.max_snapshot_mib * 2**20,
        max_host_snapshots=config.max_host_snapshots,
        max_host_snapshot_bytes=config.max_host_snapshot_mib * 2**20,
        snapshot_retention_days=config.snapshot_retention_days,
        max_layers=config.max_layers,
        templates_enabled=config.templates_enabled,
        templates_scope=config.templates_scope,
        warm_pool=config.warm_pool,
        warm_pool_memory_mib=config.warm_pool_memory_mib,
    )


def image_policy(config: Config) -> ImagePolicy:
    """What the operator allows of images."""
    return ImagePolicy(
        insecure_registries=tuple(config.insecure_registries),
        allowed_directories=tuple(config.allowed_image_dirs),
        allowed_images=tuple(config.allowed_images),
        local_stores=tuple(config.local_image_stores),
        auth_file=config.image_auth_file,
        registries_conf=config.image_registries_conf,
        signature_policy=config.image_signature_policy,
        certificates=config.image_certs_dir,
        refresh_s=config.image_refresh_s,
        max_content=config.max_image_mib * 2**20,
        max_files=config.max_image_files,
        free_floor=config.image_free_floor_mib * 2**20,
    )


def admin_socket(config: Config) -> Path:
    """Where operators' commands find the driver: in the state directory, if its path is
    short enough for a socket's.
    """
    if config.admin_socket is not None:
        return config.admin_socket
    path = config.state_dir / "run" / "admin.sock"
    if len(os.fsencode(path)) <= MAX_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(config.state_dir)).hexdigest()[:12]
    return Path("/run/vmdriver") / f"admin-{digest}" / "admin.sock"


def qemu_owner(config: Config) -> Ownership:
    """The user that QEMU runs as. ConfigError if the host has none of that name."""
    ids = facts.user_ids(config.qemu_user)
    group = facts.group_id(config.qemu_group)
    if ids is None or group is None:
        raise ConfigError(
            f"qemu_user, qemu_group: this host has no user {config.qemu_user!r} "
            f"or no group {config.qemu_group!r}",
            resolution="run scripts/prepare-host, or name others",
        )
    return Ownership(ids[0], group)


class Driver:
    """Everything of one driver process, wired."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.settings = settings_from(config)
        self.layout = Layout(config.state_dir)
        owner = qemu_owner(config)
        self._files, self._hypervisor_calls = Pool("files", 8), Pool("libvirt", 8)
        self.embedded = config.connection == "embed"
        uri = embed_uri(self.layout.libvirt) if self.embedded else config.connection
        self.connection = Connection(uri, self._hypervisor_calls)
        self.machines = Machines(self.connection, config.instance, owner)
        self.disks = DiskStore(self.layout, self._files, owner)
        self.network = HostNetwork(
            config.instance, owner, self._files, config.address_pool
        )
        self.images = ImageStore(self.layout.images, self._files, image_policy(config))
        self.records = RecordStore(self.layout, self._files)
        self.memory = DomainMemory(self.connection, self._files)
        self.memory_images = MemoryImages(self._files, owner)
        self.places = FilePlaces(self.layout)
        self._warm_up: asyncio.Task[None] | None = None
        self.accelerator = self._accelerator(owner)
        self.extensions = ExtensionRunner(
            load_extensions(config.extensions, Registered),
            config.extension,
            self.disks.extension_directory,
            frozenset(config.request_parameters),
        )
        self.extensions.phases.runner.driver = config.driver_name
        self.hub = Hub(lambda: self.manager.snapshots())  # noqa: PLW0108 - made below
        self.manager = Manager(
            self._shared,
            lambda sandbox_id: FileJournal(
                self.layout.sandbox(sandbox_id).ledger, self._files
            ),
            self.settings,
        )

    def _accelerator(self, owner: Ownership) -> AcceleratorProbe:
        try:
            found = boot.load(self.layout.boot)
            files = (str(found.kernel), str(found.initramfs), found.digest)
        except DriverError:
            files = ("", "", "")
        config = self.config
        return AcceleratorProbe(
            self.machines,
            config.accelerator if files[0] else "tcg",
            files,
            self.layout.accelerator,
            self.layout.probe,
            owner,
            config.instance,
            config.probe_deadline_s,
        )

    def _shared(self, manager: Manager) -> Shared:
        ports = self.ports()
        pool = AddressPool(self.config.instance, self.config.address_pool)
        launcher = Launcher(
            ports,
            self.settings,
            self.extensions,
            self.accelerator,
            self.places,
            pool,
            self._files,
            Supervisor(self.settings, self.images, self.disks),
        )
        undoer = Undoer(ports, pool, self.extensions.undo, manager.layers_of_others)
        templates = Templates(
            ports,
            self.settings,
            launcher,
            manager.records,
            str(self.layout.templates),
        )
        warm_pool = WarmPool(
            ports, self.settings, launcher, templates, str(self.layout.warm)
        )
        templates.on_ready, templates.on_gone = warm_pool.refill, warm_pool.drop
        return Shared(
            ports,
            self.settings,
            launcher,
            self.extensions,
            undoer,
            self.hub,
            manager.forget,
            manager.layers_of_others,
            templates,
            warm_pool,
            manager.host_snapshots,
        )

    def ports(self) -> Ports:
        """Every outside world."""
        return Ports(
            self.machines,
            self.network,
            self.disks,
            self.images,
            self.records,
            self.memory,
            self.memory_images,
        )

    async def recover(self) -> None:
        """Prepare the host and take up what there is."""
        self.prepare_connection()
        await self.network.prepare()
        await self.images.open()
        await self.manager.recover()
        self.accelerator.start()
        # libvirt asks QEMU what it can do at the first question; nobody should wait for that.
        self._warm_up = asyncio.create_task(self._know_the_hypervisor(), name="warm-up")

    async def _know_the_hypervisor(self) -> None:
        with contextlib.suppress(DriverError):
            await self.machines.build(await self.accelerator.chosen())

    def prepare_connection(self) -> None:
        """Before the first call to libvirt, with the lock held."""
        if self.embedded:
            write_embedded_configuration(
                self.layout.libvirt, self.config.qemu_user, self.config.qemu_group
            )
            remove_torn_definitions(self.layout.libvirt)
            remove_unstarted_domains(self.layout.libvirt)

    def release_threads(self) -> None:
        """Give the thread pools back."""
        for pool in (self._files, self._hypervisor_calls):
            pool.close()

    async def close(self) -> None:
        """Let everything go; machines stay."""
        if self._warm_up is not None:
            self._warm_up.cancel()
        await self.accelerator.close()
        await self.manager.close()
        await self.images.close()
        self.release_threads()


async def run_server(loaded: Loaded, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Answers GetCapabilities at once, everything else after
    recovery.
    """
    config = loaded.config
    check_path(config.bind_socket)
    check_path(admin_socket(config), "admin_socket")
    for key, why in WITHOUT_MEANING.items():
        if key in loaded.sources:
            _log.info(
                "%s (%s) is accepted and changes nothing: %s",
                key,
                loaded.sources[key],
                why,
            )
    layout = Layout(config.state_dir)
    layout.make()
    lock = StateLock(layout.lock)
    await lock.acquire()
    reaper.install(asyncio.get_running_loop())
    driver = Driver(config)
    readiness = Readiness()
    identity = Identity(
        config.driver_name,
        __version__,
        config.default_image,
        config.gateway_manages_lifecycle,
    )
    compute = ComputeDriver(identity, readiness, driver.hub)
    operators = admin.Admin(readiness, driver.hub)
    servers = [
        await serve(
            config.bind_socket, partial(servicer.register, compute), COMPUTE_DRIVER
        ),
        await serve(admin_socket(config), partial(admin.register, operators), ADMIN),
    ]
    _log.info("serving on %s; state in %s", config.bind_socket, config.state_dir)
    recovery = asyncio.create_task(driver.recover())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({recovery, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if recovery.done():
            recovery.result()
            readiness.set(driver.manager)
            _log.info("ready: %d sandboxes known", len(driver.manager.workers))
            await stopping
    finally:
        _log.info("ending; machines go on")
        for task in (recovery, stopping):
            task.cancel()
        await asyncio.wait({recovery, stopping}, timeout=0.5)
        driver.hub.close()  # open watches would otherwise hold the server for its whole grace
        await asyncio.gather(*(server.stop(0.5) for server in servers))
        background = asyncio.ensure_future(driver.manager.close_background())
        await asyncio.wait({background}, timeout=_BACKGROUND_END_S)
        # Not asyncio.timeout: what was begun on the host cannot be cancelled, only left behind.
        await asyncio.wait({asyncio.ensure_future(driver.close())}, timeout=1.0)
        lock.release()
