"""Hands what is seen of a driver to OpenTelemetry, whose readers ask in threads of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from vmdriver.telemetry import machines, seen
from vmdriver.telemetry.seen import Shown, Value

_log = logging.getLogger(__name__)
Look = Callable[[], Awaitable[Sequence[Value]]]

EVERY: tuple[Shown, ...] = (
    *(value for value in vars(seen).values() if isinstance(value, Shown)),
    *machines.ONE.values(),
    *machines.ALL.values(),
)


class Gauges:
    """`look` runs in the loop that this is made in. Nobody waits longer than `patience_s` for it: a
    driver that is held up shows what it showed last, and its loop's lag. `fresh_s`: callbacks of
    one collection share a look.
    """

    def __init__(
        self, look: Look, *, fresh_s: float = 2.0, patience_s: float = 5.0
    ) -> None:
        self._look, self._loop = look, asyncio.get_running_loop()
        self._fresh_s, self._patience_s = fresh_s, patience_s
        self._asking = threading.Lock()
        self._values: Sequence[Value] = ()
        self._at = -fresh_s
        self._ended = False

    def register(self, meter: Meter) -> None:
        """From now on its readers are told."""
        for shown in EVERY:
            make = (
                meter.create_observable_counter
                if shown.kind == "counter"
                else meter.create_observable_gauge
            )
            make(
                shown.name,
                callbacks=[self._callback(shown)],
                unit=shown.unit,
                description=shown.description,
            )

    def end(self) -> None:
        """The loop ends: nobody is asked any more."""
        self._ended = True

    def _callback(
        self, shown: Shown
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            for value in self._latest():
                if value.shown is shown:
                    yield Observation(value.number, dict(value.attributes))

        return observe

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
