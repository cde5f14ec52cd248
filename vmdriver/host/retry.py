"""Retry policies: named errors, bounded in number and time, with jitter. The only
module that knows tenacity.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from vmdriver.errors import DriverError

T = TypeVar("T")


async def retried(
    call: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    attempts: int = 3,
    within_s: float = 60.0,
    first_wait_s: float = 0.2,
) -> T:
    """Call until it works; the last error is raised as it is."""
    policy = AsyncRetrying(
        retry=retry_if_exception_type(on),
        stop=stop_after_attempt(attempts) | stop_after_delay(within_s),
        wait=wait_random_exponential(multiplier=first_wait_s, max=10.0),
        reraise=True,
    )

    async def attempt() -> T:  # tenacity looks at the function to see whether to await
        return await call()

    return await policy(attempt)


def backoff_s(attempt: int, *, first_s: float = 0.5, most_s: float = 30.0) -> float:
    """Seconds to wait before trying for the `attempt`-th time again (0 is the first
    repetition).

    >>> [backoff_s(attempt) for attempt in (0, 1, 2, 3, 99)]
    [0.5, 1.0, 2.0, 4.0, 30.0]
    """
    return float(min(most_s, first_s * 2 ** min(attempt, 16)))


async def tried(
    log: logging.Logger, work: Awaitable[object], what: str = "upkeep"
) -> None:
    """Do something that nobody waits for: what cannot be done now is tried at the next occasion.
    No trouble of one thing ends the care for all others.
    """
    try:
        await work
    except DriverError as error:
        log.warning("%s: cannot be done now: %s", what, error.text())
    except Exception:
        log.exception("%s: failed", what)
