"""A user namespace for what unpacks images: its users 0, 1, … are numbers of the upper half of the
32 bits on the host, which nobody has (systemd's UIDS-GIDS: nothing is assigned from 2147418112 on).

Whoever breaks out of such a program is a user of the host that owns nothing but what images were
unpacked to. In the namespace no further one can be made: little of the kernel can be asked from it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from vmdriver.errors import CommandError, HostError
from vmdriver.host import process
from vmdriver.host.confined.box import ImageRoot

FIRST = 2**31
"""The host's number of the namespace's root, user and group."""
COUNT = 2**31 - 1
_MAP = f"0 {FIRST} {COUNT}"
_MOST = "/proc/sys/user/max_user_namespaces"
_SHUT = f"echo there && read go && echo 0 >{_MOST} && echo shut && read end"
_PROGRAM = "unshare"
_DEADLINE_S = 20.0


class UserNamespace:
    """Made when it is first asked for; gone with this process and what still runs in it."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._making = asyncio.Lock()

    async def root(self) -> ImageRoot:
        """Its root. HostError where the numbers are not this driver's to give: in a container
        that has only some.
        """
        async with self._making:
            if self._descriptor < 0:
                self._descriptor = await _make()
        return ImageRoot(self._descriptor)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


async def _make() -> int:
    """A descriptor of a new one. A shell makes it and waits in it until we have written down who
    is who: only somebody outside of it may.
    """
    words = [_PROGRAM, "--user", "--keep-caps", "--", "sh", "-c", _SHUT]
    async with process.conversation(words, deadline_s=_DEADLINE_S) as (pid, ask):
        try:
            await _begun(ask)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text(_MAP)
            descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        except OSError as error:
            raise _refused(str(error)) from error
        try:
            await ask("go", "shut")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


async def _begun(ask: Callable[[str, str], Awaitable[None]]) -> None:
    try:
        await ask("", "there")
    except CommandError as error:
        if f"{_PROGRAM}: " not in error.message:
            raise  # it was killed
        raise _refused(
            error.message,
            "user.max_user_namespaces must not be 0, a container has to allow unshare(2), and "
            "there is none in a chroot",
        ) from error


def give(*paths: Path) -> None:
    """Have files and folders belong to the namespace's root. No link is followed. OSError."""
    for path in paths:
        os.chown(path, FIRST, FIRST, follow_symlinks=False)


def is_its(found: os.stat_result) -> bool:
    """Whether a file belongs to somebody in the namespace."""
    return found.st_uid >= FIRST


_NOT_OURS = (
    f"the driver needs the users {FIRST} to {FIRST + COUNT - 1} of the host: run it in the host's "
    "own user namespace, and with CAP_SETUID and CAP_SETGID"
)


def _refused(why: str, way_out: str = _NOT_OURS) -> HostError:
    return HostError(
        f"no user namespace can be made for what unpacks images: {why}",
        reason="IsolationUnavailable",
        resolution=way_out,
    )
