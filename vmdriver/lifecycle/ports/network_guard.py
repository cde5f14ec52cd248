"""What the core needs of whoever sees to it that machines' networks stay as they were made. What
ports/host.py says of errors and cancellation holds here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vmdriver.model.plan import NetworkPlan


@dataclass(frozen=True)
class NetworkNews:
    """Of a machine's network, which somebody has changed."""

    tap: str
    """Whose."""
    message: str
    """What was changed, and what became of it; for people."""
    restored: bool
    """False: it could not be restored twice; `why_broken` says the same until it is whole."""


class NetworkGuard(Protocol):
    """Restores what others change of a machine's network, in this process and as long as it is
    asked to.
    """

    async def keep(
        self, plan: NetworkPlan, mark: str, *, mend: bool = False, broken: str = ""
    ) -> None:
        """Load the machine's rules, replacing older ones, let it out behind them, and see to it
        from now on that they and all else of its network stay so. `mend`: another process has made
        it, and somebody may have changed it since; `broken`: and could not restore it, for this
        reason. NetworkError: then it is tried again until `leave`, and is as broken as it was.
        """

    async def leave(self, tap: str) -> None:
        """Restore nothing of it any more: nothing that was begun goes on after this."""

    def keeps(self, tap: str) -> bool:
        """Whether that is asked of it."""

    def why_broken(self, tap: str) -> str:
        """Why its machine must not run: what is not as it was made and could not be restored twice.
        "": it is whole, or is being restored for the first time, or is nothing that it keeps.
        """

    def on_news(self, told: Callable[[NetworkNews], None]) -> None:
        """Call `told`, in the loop's thread, for what was changed and, once, for what is broken;
        and when a broken one is whole again.
        """
