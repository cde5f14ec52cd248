"""Every metric that there is: those that a look gives, and those that are counted where things
happen (lifecycle/engine/measures.py, lifecycle/extending/calls.py, network/names/counts.py,
service/tls/counts.py, compose/server.py, loop_lag.py).
"""

from __future__ import annotations

from vmdriver.telemetry import composed, machines, seen
from vmdriver.telemetry.shown import Shown

_OPERATIONS = (
    "booted, relaunched, template (a fork), resumed, snapshot (returned to, or started from one), "
    "suspended, snapshot taken, stopped, deleted"
)
COUNTED: tuple[Shown, ...] = (
    Shown(
        "vmdriver.operation.duration",
        "s",
        f"what was done with a sandbox, from the wish to its end: {_OPERATIONS}",
        "histogram",
        ("operation",),
    ),
    Shown(
        "vmdriver.step.duration",
        "s",
        "the steps of these; they may lie beside each other",
        "histogram",
        ("operation", "step"),
    ),
    Shown(
        "vmdriver.events",
        "{event}",
        "platform events; an extension's own reasons are `other`",
        "counter",
        ("reason", "type"),
    ),
    Shown(
        "vmdriver.failures",
        "{failure}",
        "sandboxes that failed",
        "counter",
        ("reason",),
    ),
    Shown(
        "vmdriver.launch.failures",
        "{failure}",
        "launches that did not come up, by the reason of what stood in their way",
        "counter",
        ("reason", "tried_again"),
    ),
    Shown(
        "vmdriver.template.lookups",
        "{lookup}",
        "launches that looked for a template: hit, miss, or none (may be used for it)",
        "counter",
        ("outcome",),
    ),
    Shown(
        "vmdriver.warm_pool.lookups",
        "{lookup}",
        "launches with a template that looked for a machine that waits on it: hit, miss",
        "counter",
        ("outcome",),
    ),
    Shown(
        "vmdriver.names",
        "{question}",
        "guests' questions for names that came to the driver: answered, failed (no server of the "
        "host's answers), refused (no plain questions), dropped (too many at a time)",
        "counter",
        ("outcome",),
    ),
    Shown(
        "vmdriver.extension.call.duration",
        "s",
        "calls of extensions",
        "histogram",
        ("extension", "phase", "outcome"),
    ),
    Shown(
        "vmdriver.tls.connections",
        "{connection}",
        "connections from other hosts (`bind_tls`): taken, refused",
        "counter",
        ("outcome",),
    ),
    Shown(
        "vmdriver.loop.lag", "s", "how late the event loop came to a timer", "histogram"
    ),
    composed.CALLS,
)
SEEN: tuple[Shown, ...] = (
    *(value for value in vars(seen).values() if isinstance(value, Shown)),
    *machines.ONE.values(),
    *machines.ALL.values(),
    *composed.SEEN,
)
EVERY = (*COUNTED, *SEEN)
