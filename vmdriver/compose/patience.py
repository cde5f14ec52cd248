"""How long a base is waited for that says nothing: at most, and of one call over all the times that
it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """In seconds. `ping_after_s`: of silence, before a base is pinged while it is asked something;
    `ping_s`: until a ping is answered; `call_s`: for one call of a base that answers pings.
    """

    ping_after_s: float
    ping_s: float
    call_s: float = 3600.0
    """Longer than the longest stop that can be configured (20 min), or an image's way to a host."""

    @property
    def silent_s(self) -> float:
        """After which a base that says nothing has been noticed."""
        return self.ping_after_s + self.ping_s

    def options(self) -> list[tuple[str, int]]:
        """Of a channel. gRPC has two names for the time until a ping is answered, and obeys the
        second, which is a minute by default.
        """
        timeout_ms = int(self.ping_s * 1000)
        return [
            ("grpc.keepalive_time_ms", int(self.ping_after_s * 1000)),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),
            ("grpc.http2.max_pings_without_data", 0),
        ]


NEAR = Limits(ping_after_s=330.0, ping_s=20.0)
"""gRPC's servers end connections that ping more often than every 5 minutes, unless told otherwise,
and we do not know whose this one is.
"""
FAR = Limits(ping_after_s=10.0, ping_s=10.0)


class Patience:
    """Of one call. Its rounds are not cut short while their connections last, but once the base was
    lost, no other one begins after `wait_s`. `timeout_s`: until its caller's deadline.
    """

    def __init__(
        self,
        limits: Limits,
        wait_s: float,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = clock
        self._limits, self._wait_s = limits, wait_s
        self._ends_at = clock() + limits.call_s
        self._due_at = None if timeout_s is None else clock() + timeout_s
        self._back_by: float | None = None

    def left_s(self) -> float:
        """Until it ends, whatever the base does."""
        return max(0.0, self._ends_at - self.now())

    def due_s(self) -> float | None:
        """Until its caller's deadline; None: it has none."""
        return None if self._due_at is None else max(0.0, self._due_at - self.now())

    def connect_s(self) -> float:
        """How long may be waited for a connection now."""
        now = self.now()
        back_by = now + self._wait_s if self._back_by is None else self._back_by
        ends = [back_by, self._ends_at]
        if self._due_at is not None:
            ends.append(self._due_at)
        return max(0.0, min(ends) - now)

    @property
    def is_over(self) -> bool:
        """The base was lost and has not come back in time, or this has gone on for too long."""
        ends_at = self._ends_at
        if self._back_by is not None:
            ends_at = min(ends_at, self._back_by)
        return self.now() >= ends_at

    def lost(self, sent_at: float) -> None:
        """The connection broke that a round began on at `sent_at`. One that lasted had somebody at
        its other end, who is waited for anew.
        """
        lasted = self.now() - sent_at > 2 * self._limits.silent_s
        if self._back_by is None or lasted:
            self._back_by = self.now() + self._wait_s

    def answered(self) -> None:
        """The base is there."""
        self._back_by = None
