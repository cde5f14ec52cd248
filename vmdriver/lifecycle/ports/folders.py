"""Folders of the host, as the core gives them to machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmdriver.lifecycle.ports.host import Found
from vmdriver.model.host_mount import HostMount
from vmdriver.model.plan import LaunchPlan


class HostFolders(Protocol):
    """Each folder of each machine has a program of its own, which outlives us, and ends with us
    only where we end it. It sees that folder and nothing else of the host's files.
    """

    async def look(self, mounts: Sequence[HostMount]) -> None:
        """Whether machines could have these now. Refused, HostError. Nothing is changed."""

    async def share(self, plan: LaunchPlan, mark: str, directory: str) -> None:
        """Have a program for each of the plan's, whose sockets are the machine's user's alone and
        lie in that directory. Refused, HostError: there may be some, which `end` ends.
        """

    async def end(self, mark: str, directory: str) -> None:
        """No program with that mark and directory runs any more, and the directory is gone. May
        be repeated, and come after a half of `share`. HostError.
        """

    async def shared(self) -> dict[str, set[str]]:
        """Tags of the folders whose program runs, by mark. HostError."""

    async def marked(self) -> list[Found]:
        """What `shared` is about, by the directories' names."""
