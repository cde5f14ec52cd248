"""One call of an extension: its time, what its errors mean, and who learns of it: the log, a
span and a metric of OpenTelemetry (which go nowhere unless the operator has set up an SDK), and
extensions that observe.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vmdriver.errors import DriverError, Refused
from vmdriver.host.log_context import being_at
from vmdriver.lifecycle.engine.measures import BUCKETS_S
from vmdriver.lifecycle.extending.hooks import SandboxView
from vmdriver.lifecycle.extending.participants import Registered
from vmdriver.lifecycle.extending.phases import Call, Extension

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("vmdriver")
_duration = metrics.get_meter("vmdriver").create_histogram(
    "vmdriver.extension.call.duration",
    unit="s",
    description="time of one call of an extension",
    explicit_bucket_boundaries_advisory=BUCKETS_S,
)
_propagator = TraceContextTextMapPropagator()


class Calls:
    """Makes the calls of all extensions of a driver. `observers`, each with its table, are told of
    every call.
    """

    def __init__(self, observers: Sequence[tuple[Extension, Any]]) -> None:
        self._observers = observers

    async def make(
        self,
        extension: Registered,
        what: str,
        sandbox: SandboxView,
        work: Awaitable[None],
        context: Mapping[str, str] | None = None,
    ) -> None:
        """Await `work`. Refused, naming the extension, for whatever is not a DriverError.
        `context`: traceparent and tracestate of what led here.
        """
        begun, problem, outcome = time.monotonic(), "", "cancelled"
        attributes = {"extension": extension.name, "phase": what}
        span = _tracer.start_as_current_span(
            f"extension {extension.name}.{what}",
            context=_parent(context),
            attributes={**attributes, "sandbox": sandbox.id},
            # With the trace of what an extension raised: it may hold a secret of its own, and the
            # log is the place for it, not another host.
            record_exception=False,
        )
        with being_at(sandbox=sandbox.id), span:
            try:
                await _bounded(extension, what, work)
                outcome = "ok"
            except DriverError as error:
                problem, outcome = error.text(), "failed"
                raise
            finally:
                seconds = time.monotonic() - begun
                _duration.record(seconds, {**attributes, "outcome": outcome})
                whose = (extension.name, what, sandbox.id, sandbox.workspace)
                await self._tell(Call(*whose, seconds, problem))

    async def _tell(self, call: Call) -> None:
        whose, took = (call.sandbox_id, call.extension, call.phase), call.seconds * 1e3
        error = f": {call.error}" if call.error else ""
        _log.info("%s: %s.%s took %.0f ms%s", *whose, took, error)
        for observer, config in self._observers:
            try:
                async with asyncio.timeout(observer.timeout_s):
                    await observer.observe(call, config)
            except Exception:  # noqa: BLE001 - who watches must not disturb
                _log.exception("extension %s failed in observe", observer.name)


def _parent(carrier: Mapping[str, str] | None) -> Context | None:
    """None: what this task is at, which has come from there."""
    if not carrier or trace.get_current_span().get_span_context().is_valid:
        return None
    return _propagator.extract(carrier)


async def _bounded(extension: Registered, what: str, work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(extension.timeout_s):
            await work
    except TimeoutError as error:
        raise Refused(
            f"extension {extension.name!r}: {what} took longer than "
            f"{extension.timeout_s:g} s",
            reason="ExtensionTimedOut",
        ) from error
    except DriverError:
        raise
    except Exception as error:
        _log.exception("extension %s failed in %s", extension.name, what)
        raise Refused(
            f"extension {extension.name!r} failed in {what}: {type(error).__name__}",
            reason="ExtensionFailed",
        ) from error
