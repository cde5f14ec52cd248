"""The host user ids that machines run as."""

from __future__ import annotations

from dataclasses import dataclass

from vmdriver.model.plan import MachineUser


@dataclass(frozen=True)
class MachineUids:
    """A range of the operator's, both ends in it; of three numbers at least."""

    first: int
    last: int

    @property
    def shared_gid(self) -> int:
        """The group of every machine's process, and of what all of them may read. It is the
        range's first number, which no machine has as its user.
        """
        return self.first

    @property
    def probe(self) -> MachineUser:
        """As whom the accelerator probe's guests run."""
        return self.user(self.first + 1)

    @property
    def numbers(self) -> range:
        """What machines may have."""
        return range(self.first + 2, self.last + 1)

    def user(self, uid: int) -> MachineUser:
        """A machine's user of that number."""
        return MachineUser(uid=uid, gid=self.shared_gid)

    def overlaps(self, other: MachineUids) -> bool:
        """Whether a number is in both."""
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"
