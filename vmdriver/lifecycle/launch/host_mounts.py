"""Folders of the host in machines: whether a request may have what it asks for, and how a machine
comes to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmdriver.errors import Refused
from vmdriver.host import facts
from vmdriver.lifecycle.engine.resource import HOST_MOUNTS, Given
from vmdriver.lifecycle.launch.resources import MachineSource, Part
from vmdriver.lifecycle.ports.folders import HostFolders
from vmdriver.lifecycle.ports.paths import BootChoice
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.host_mount import (
    KEY,
    KNOWS,
    PATH,
    SETTING,
    HostMount,
    allowed_for,
    wishes_of,
)
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.wall import ISOLATION_UNAVAILABLE

Account = Callable[[str], tuple[int, int] | None]
"""User and group id of an account of the host's. None: there is none."""


def check_host_mounts(spec: SandboxSpec, settings: Settings) -> None:
    """All that can be said without looking at the host. InvalidRequest, Refused."""
    wishes = wishes_of(spec)
    for wish in wishes:
        allowed_for(wish, settings.host_mounts)
    if wishes and spec.driver_config.get("on_stop") == "suspend":
        raise Refused(
            f"template.driver_config.on_stop: a machine with {KEY} has no memory that could be "
            "kept",
            reason="HostMountAttached",
            resolution='leave it out, or say "shutdown"',
        )


@dataclass(frozen=True, kw_only=True)
class HostMounts:
    """What of the host's folders machines get."""

    host: HostFolders
    settings: Settings
    account: Account = facts.user_ids

    def planned(self, spec: SandboxSpec, directory: str) -> tuple[HostMount, ...]:
        """What its machine gets, its sockets in that directory. Refused."""
        found = []
        for number, wish in enumerate(wishes_of(spec)):
            allowed = allowed_for(wish, self.settings.host_mounts)
            uid, gid = self.whose(allowed.user) if allowed.user else (None, None)
            tag = f"folder{number}"
            found.append(
                HostMount(
                    tag=tag,
                    path=wish.path,
                    allowed=allowed.path,
                    mount=wish.mount,
                    read_only=wish.read_only,
                    uid=uid,
                    gid=gid,
                    socket=f"{directory}/{tag}.sock",
                )
            )
        return tuple(found)

    def whose(self, user: str) -> tuple[int, int]:
        """Whose files are written as that user, by number: never root. Refused."""
        found = self.account(user)
        if found is None or found[0] == 0:
            what = "is root" if found else "is no user of this host"
            raise Refused(
                f"{SETTING}: {user!r} {what}",
                reason="HostMountUser",
                resolution="name another user there, and restart the driver",
            )
        return found

    async def admit(self, spec: SandboxSpec) -> None:
        """Whether a sandbox of this spec could have its folders now. InvalidRequest, Refused,
        HostError.
        """
        check_host_mounts(spec, self.settings)
        mounts = self.planned(spec, "")
        if mounts:
            await self.host.look(mounts)

    @staticmethod
    def check_boot(mounts: tuple[HostMount, ...], boot: BootChoice) -> None:
        """Refused where its guest would not mount them: what is written there would lie on the
        root disk.
        """
        if mounts and KNOWS not in boot.knows:
            raise Refused(
                "the guests' boot files are of an earlier release, and know no host folders",
                reason="HostMountsUnknown",
                resolution="upgrade vmdriver's package (in a checkout: images/build-boot-files), "
                "and start the sandbox again",
            )

    @staticmethod
    def check_wall(plan: LaunchPlan) -> None:
        """Refused without a box: only there is the socket where QEMU is told."""
        if plan.host_mounts and "box" not in plan.wall:
            raise Refused(
                f"{PATH}: this host cannot give machines a box, without which none gets a folder "
                "of the host",
                reason=ISOLATION_UNAVAILABLE,
                resolution="see what vmdriver doctor says of the box",
            )


def host_mounts_part(host: HostFolders) -> Part:
    """The programs that give the machine its folders: from before it is there until it is not."""

    def data(source: MachineSource) -> Mapping[str, str]:
        return {"mark": source.mark, "directory": _directory(source.plan)}

    return Part(
        HOST_MOUNTS,
        ("mark", "directory"),
        blame=Reason.GUEST_PREPARE_FAILED,
        data=data,
        acquire=lambda source: host.share(
            source.plan, source.mark, _directory(source.plan)
        ),
        release=lambda given: _end(host, given),
        applies=lambda source: bool(source.plan.host_mounts),
    )


async def _end(host: HostFolders, given: Given) -> None:
    await host.end(given["mark"], given["directory"])


def _directory(plan: LaunchPlan) -> str:
    return plan.host_mounts[0].socket.rpartition("/")[0]
