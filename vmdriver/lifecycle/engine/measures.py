"""What the core counts and times, with OpenTelemetry's instruments: they go nowhere unless
metrics_listen, otlp_endpoint or an SDK of the operator's takes them.

No name of a sandbox is in an attribute of a metric: there would be a series for each that ever was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

from opentelemetry import metrics, trace

from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.model.reasons import sections
from vmdriver.model.timing import TimedStep

BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
OTHER = "other"
"""Stands for every reason that an extension has thought of: there may be any number."""
_tracer = trace.get_tracer("vmdriver")
_meter = metrics.get_meter("vmdriver")
_operations = _meter.create_histogram(
    "vmdriver.operation.duration",
    unit="s",
    description="what was done with a sandbox, from the wish to its end",
    explicit_bucket_boundaries_advisory=BUCKETS_S,
)
_steps = _meter.create_histogram(
    "vmdriver.step.duration",
    unit="s",
    description="one step of what was done with a sandbox; steps may lie beside each other",
    explicit_bucket_boundaries_advisory=BUCKETS_S,
)
_events = _meter.create_counter(
    "vmdriver.events", unit="{event}", description="platform events, by reason"
)
_failures = _meter.create_counter(
    "vmdriver.failures",
    unit="{failure}",
    description="sandboxes that failed, by reason, also those that are tried again",
)
_launch_failures = _meter.create_counter(
    "vmdriver.launch.failures",
    unit="{failure}",
    description="launches that did not come up, by the reason of what stood in their way",
)
_templates = _meter.create_counter(
    "vmdriver.template.lookups",
    unit="{lookup}",
    description="starts that looked for a template: hit, miss, or none may be used",
)
_pool = _meter.create_counter(
    "vmdriver.warm_pool.lookups",
    unit="{lookup}",
    description="starts that looked for a machine that waits on their template: hit, miss",
)


def event(reason: str, kind: str) -> None:
    """A platform event was told. `kind`: Normal or Warning."""
    _events.add(1, {"reason": _known(reason), "type": kind})


def failure(reason: str) -> None:
    """A sandbox has failed."""
    _failures.add(1, {"reason": _known(reason)})


def looked_for_template(outcome: str) -> None:
    """`outcome`: "hit", "miss", or "none" where none may be used."""
    _templates.add(1, {"outcome": outcome})


def looked_for_waiting(*, found: bool) -> None:
    """For a machine of the warm pool."""
    _pool.add(1, {"outcome": "hit" if found else "miss"})


def launch_failed(reason: str, *, again: bool) -> None:
    """A launch did not come up. `reason`: of what stood in its way; `again`: it is tried again."""
    attributes = {"reason": _known(reason), "tried_again": str(again).lower()}
    _launch_failures.add(1, attributes)


def _known(reason: str) -> str:
    return reason if reason in _explained() else OTHER


@cache
def _explained() -> frozenset[str]:
    return frozenset(e.reason for entries in sections().values() for e in entries)


def took(operation: str, sandbox_id: str, watch: Stopwatch) -> None:
    """Something was done with that sandbox; `watch` counts since the wish for it."""
    done(operation, sandbox_id, watch.timed())


def done(operation: str, sandbox_id: str, steps: Sequence[TimedStep]) -> None:
    """The same, of steps that end with the last of them, which is now."""
    if not steps:
        return
    whole_ms = max(step.ended_ms for step in steps)
    _operations.record(whole_ms / 1e3, {"operation": operation})
    for step in steps:
        attributes = {"operation": operation, "step": step.name}
        _steps.record((step.ended_ms - step.begun_ms) / 1e3, attributes)
    _trace(operation, sandbox_id, steps, time.time_ns() - round(whole_ms * 1e6))


def _trace(
    operation: str, sandbox_id: str, steps: Sequence[TimedStep], begun_ns: int
) -> None:
    """Spans of what has ended, each with its own times."""
    attributes = {"sandbox": sandbox_id}
    whole = _tracer.start_span(operation, attributes=attributes, start_time=begun_ns)
    context = trace.set_span_in_context(whole)
    for step in steps:
        span = _tracer.start_span(
            f"{operation}: {step.name}",
            context=context,
            attributes=attributes,
            start_time=begun_ns + round(step.begun_ms * 1e6),
        )
        span.end(begun_ns + round(step.ended_ms * 1e6))
    whole.end(begun_ns + round(max(step.ended_ms for step in steps) * 1e6))
