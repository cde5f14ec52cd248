"""Takes one sandbox from nothing held to a started machine. Everything it acquires goes
through the ledger.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from vmdriver.errors import DriverError, Refused
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.engine.stopwatch import Timed
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.devices import Devices
from vmdriver.lifecycle.launch.devices_asked import wanted_devices
from vmdriver.lifecycle.launch.environment import guest_endpoint
from vmdriver.lifecycle.launch.host_mounts import HostMounts
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import (
    AddressLease,
    MachineSource,
    Part,
    take,
)
from vmdriver.lifecycle.launch.supervisor import Supervisor
from vmdriver.lifecycle.launch.users import UserLease
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.launch.wall import Wall
from vmdriver.lifecycle.ports.host import (
    AcceleratorChoice,
    Hypervisor,
    Network,
    Records,
)
from vmdriver.lifecycle.ports.images import BaseDisk, ImageProgress, Images
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.condition import Progress
from vmdriver.model.plan import LaunchPlan, Lease, MachineUser
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason

_log = logging.getLogger(__name__)
Tell = Callable[[str, str, Progress], None]
"""Publishes a platform event: reason, message, progress."""


_TELL_EVERY_S = 0.5


class ImageTeller:
    """Tells of an image's preparation: each step, and how far it is at most twice a second."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told: tuple[str, float] = ("", 0.0)

    def __call__(self, progress: ImageProgress) -> None:
        """A ports.ProgressSink."""
        reason, when = self._told
        now = time.monotonic()
        if progress.reason == reason and now - when < _TELL_EVERY_S:
            return
        self._told = (progress.reason, now)
        shown = Progress(active_step="pulling_image", active_detail=progress.detail)
        self._tell(progress.reason, progress.detail, shown)


class LaunchFailed(Exception):
    """A launch did not come to be. `blame` is for clean-up hooks, `cause` for the user."""

    def __init__(self, cause: DriverError, blame: Reason) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.blame = blame


@contextmanager
def _taking(sandbox_id: str, timed: Timed, part: Part) -> Iterator[None]:
    try:
        with timed(part.key):
            yield
    except DriverError as error:
        text = "%s: step %s failed: %s [%s]"
        _log.warning(text, sandbox_id, part.key, error, error.detail)
        raise LaunchFailed(error, part.blame) from error


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """For all sandboxes; holds no state of its own."""

    images: Images
    hypervisor: Hypervisor
    network: Network
    records: Records
    settings: Settings
    extensions: ExtensionRunner
    accelerator: AcceleratorChoice
    paths: Paths
    lease: AddressLease
    user: UserLease
    wall: Wall
    files: Threads
    supervisor: Supervisor
    budget: MemoryBudget
    devices: Devices
    parts: Sequence[Part]
    """Of a machine, in the order in which it comes to them."""
    volumes: Volumes
    host_mounts: HostMounts

    async def plan(
        self, record: SandboxRecord, ledger: Ledger, tell: Tell, timed: Timed
    ) -> LaunchPlan:
        """Find out what is needed, ask the extensions, freeze. Holds address and user from
        here on. `timed` is entered for each step. LaunchFailed.
        """
        try:
            with timed("image"):
                disk = await self._image(record, tell)
            with timed("address"):
                lease = await self.lease.acquire(record.id, ledger)
            with timed("user"):
                user = await self.user.acquire(record.id, ledger)
            with timed("host facts"):
                facts = await self._facts(record, disk, lease, user)
            if wanted_devices(record.spec):
                with timed("devices chosen"):
                    passed = await self.devices.choose(record)
                facts = replace(facts, passed=passed)
        except DriverError as error:
            raise LaunchFailed(error, Reason.GUEST_PREPARE_FAILED) from error
        try:
            with timed("extensions configure"):
                draft = await self.extensions.configure_launch(record, ledger)
            plan = planner.resolve(record.spec, self.settings, facts, draft)
            plan = planner.with_user(plan, user)
            self.budget.claim(record, plan.memory_mib, draft.asker("memory_mib"))
        except DriverError as error:
            raise LaunchFailed(error, Reason.BEFORE_LAUNCH_HOOK_FAILED) from error
        try:
            with timed("wall"):
                plan = await self.wall.around(plan)
                self.host_mounts.check_wall(plan)
                return plan
        except DriverError as error:
            raise LaunchFailed(error, Reason.GUEST_PREPARE_FAILED) from error

    async def _image(self, record: SandboxRecord, tell: Tell) -> BaseDisk:
        if record.base:
            # The disk was made on this very base: the tag may have moved since, and the
            # registry may be away.
            return BaseDisk(record.base, record.image_digest, record.image_config)
        tell(
            "Scheduled",
            "the sandbox is allocated",
            Progress(
                "requesting_sandbox",
                "Sandbox allocated",
                "pulling_image",
                record.spec.image,
            ),
        )
        disk = await self.images.prepare(
            record.spec.image, record.id, ImageTeller(tell)
        )
        tell(
            "Pulled",
            f"the image is there: {disk.digest}",
            Progress("pulling_image", "Image pulled", "starting_sandbox"),
        )
        return disk

    async def _facts(
        self, record: SandboxRecord, disk: BaseDisk, lease: Lease, user: MachineUser
    ) -> planner.HostFacts:
        endpoint = guest_endpoint(self.settings.endpoint)
        accelerator = await self.accelerator.chosen()
        boot, paths = self.paths.boot(), self.paths.of(record.id)
        host_mounts = self.host_mounts.planned(record.spec, paths.folders)
        self.host_mounts.check_boot(host_mounts, boot)
        return planner.HostFacts(
            accelerator=accelerator,
            processor=await self.hypervisor.processor(accelerator),
            boot=boot,
            base_disk=disk.path,
            layers=self._layers(record, user),
            image_digest=disk.digest,
            image_config=disk.config,
            supervisor_disk=await self.supervisor.disk(),
            paths=paths,
            lease=lease,
            own_networks=await self.network.own_networks(),
            ipv6=await self.network.way_to_ipv6()
            if self.settings.egress_ipv6
            else None,
            gateway_address=None
            if endpoint.on_host_loopback
            else await self.network.resolve(endpoint.host),
            has_token=await self.records.token(record.id) is not None,
            volumes=self.volumes.disks(record.spec, boot, self.paths.volume),
            host_mounts=host_mounts,
        )

    def _layers(self, record: SandboxRecord, user: MachineUser) -> tuple[str, ...]:
        if len(record.layers) > record.inherited_layers:
            return record.layers
        return (*record.layers, self.paths.new_layer(record.id, user))

    async def prepare(
        self, record: SandboxRecord, ledger: Ledger, plan: LaunchPlan
    ) -> dict[str, str]:
        """before_launch hooks; the supervisor's environment with what they added. `record`
        already holds the plan, durably. LaunchFailed.
        """
        try:
            added = await self.extensions.before_launch(record, ledger, plan)
            return planner.with_added(plan.environment, added)
        except DriverError as error:
            raise LaunchFailed(error, Reason.BEFORE_LAUNCH_HOOK_FAILED) from error

    async def take(
        self,
        record: SandboxRecord,
        ledger: Ledger,
        source: MachineSource,
        timed: Timed,
    ) -> None:
        """Acquire everything that its machine holds; `timed` is entered for each part, with its
        key. LaunchFailed.
        """
        try:
            await take(ledger, self.parts, source, partial(_taking, record.id, timed))
        except DriverError as error:  # none of a part's: the ledger cannot be written
            raise LaunchFailed(error, Reason.LAUNCHER_SPAWN_FAILED) from error

    async def secrets(self, record: SandboxRecord) -> dict[str, bytes]:
        """Token and TLS files for the guest, by path below /opt/openshell. Refused when a
        TLS file cannot be read.
        """
        secrets: dict[str, bytes] = {}
        token = await self.records.token(record.id)
        if token is not None:
            secrets["auth/sandbox.jwt"] = token.get_secret_value().encode() + b"\n"
        if (
            self.settings.tls is not None
            and guest_endpoint(self.settings.endpoint).secure
        ):
            tls = self.settings.tls
            for name, path in (
                ("ca.crt", tls.ca),
                ("tls.crt", tls.cert),
                ("tls.key", tls.key),
            ):
                try:
                    secrets[f"tls/{name}"] = await self.files.run(path.read_bytes)
                except OSError as error:
                    raise Refused(
                        f"the guests' TLS file {name} cannot be read: {error.strerror}",
                        detail=str(path),
                        reason="TlsFilesMissing",
                        resolution=(
                            "check guest_tls_ca, guest_tls_cert and guest_tls_key"
                        ),
                    ) from error
        return secrets
