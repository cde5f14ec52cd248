"""How late the driver's event loop is: whatever blocks it holds up every sandbox."""

from __future__ import annotations

import asyncio
import time

from opentelemetry import metrics

_EVERY_S = 0.25
_lag = metrics.get_meter("vmdriver").create_histogram(
    "vmdriver.loop.lag",
    unit="s",
    description="how much later than it should the event loop came to a timer",
    explicit_bucket_boundaries_advisory=(
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        *(1, 2, 5),
    ),
)


async def measure() -> None:
    """Until it is cancelled."""
    while True:
        due = time.monotonic() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        _lag.record(max(0.0, time.monotonic() - due))
