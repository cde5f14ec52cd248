"""What is done around the begin of a QEMU that is not begun in its machine's network namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from vmdriver.model.plan import NetworkPlan

Entrance = Callable[[NetworkPlan, str], AbstractAsyncContextManager[None]]
"""Given the plan and its mark: inside, the machine is begun and left paused; after that its network
is where it belongs. NetworkError.
"""


@asynccontextmanager
async def straight(_plan: NetworkPlan, _mark: str) -> AsyncIterator[None]:
    """QEMU is begun where its tap is."""
    yield
