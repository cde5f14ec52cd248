"""Adds what is seen of a driver to what OpenTelemetry's readers collect, in their own threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.shown import Shown

_log = logging.getLogger(__name__)
_SEEN = "vmdriver.seen"
"""A scope of its own, for the same reason."""
Look = Callable[[], Awaitable[Sequence[Value]]]


class Gauges:
    """`look` runs in the loop that this is made in. Nobody waits longer than `patience_s` for it: a
    driver that is held up shows what it showed last, and its loop's lag. `fresh_s`: readers that
    collect at one time share a look.

    No instruments of OpenTelemetry's: its SDK keeps each set of attributes that there ever was, and
    from the 2000th on has all in one series, which sandboxes that come and go would reach.
    """

    def __init__(
        self,
        look: Look,
        resource: Resource,
        *,
        fresh_s: float = 2.0,
        patience_s: float = 5.0,
    ) -> None:
        self._look, self._loop = look, asyncio.get_running_loop()
        self._resource = resource
        self._fresh_s, self._patience_s = fresh_s, patience_s
        self._begun_ns = time.time_ns()
        self._asking = threading.Lock()
        self._values: Sequence[Value] = ()
        self._at = -fresh_s
        self._ended = False

    def end(self) -> None:
        """The loop ends: nobody is asked any more."""
        self._ended = True

    def beside(self, collected: MetricsData) -> MetricsData:
        """What a reader has collected, and what is seen now. In one entry of the resource: OTLP's
        encoder keeps the last of several.
        """
        scopes = [s for each in collected.resource_metrics for s in each.scope_metrics]
        own = ScopeMetrics(InstrumentationScope(_SEEN), self._metrics(), "")
        return MetricsData([ResourceMetrics(self._resource, [*scopes, own], "")])

    def _metrics(self) -> list[Metric]:
        points: dict[Shown, list[NumberDataPoint]] = {}
        values, now_ns = self._latest(), time.time_ns()
        for value in values:
            points.setdefault(value.shown, []).append(
                NumberDataPoint(
                    dict(value.attributes), self._begun_ns, now_ns, value.number
                )
            )
        return [
            Metric(s.name, s.description, s.unit, _data(s, points[s])) for s in points
        ]

    def _latest(self) -> Sequence[Value]:
        with self._asking:
            if not self._ended and time.monotonic() - self._at > self._fresh_s:
                self._ask()
                self._at = time.monotonic()
            return self._values

    def _ask(self) -> None:
        async def look() -> Sequence[Value]:
            return await self._look()

        coroutine = look()
        try:
            answer: Future[Sequence[Value]] = asyncio.run_coroutine_threadsafe(
                coroutine, self._loop
            )
        except RuntimeError:  # the loop is closed
            coroutine.close()
            return
        try:
            self._values = answer.result(self._patience_s)
        except TimeoutError:
            answer.cancel()
        except Exception:  # noqa: BLE001 - who watches must not disturb
            _log.exception("metrics could not be looked at")


def _data(shown: Shown, points: list[NumberDataPoint]) -> Gauge | Sum:
    if shown.kind == "counter":
        return Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    return Gauge(points)
