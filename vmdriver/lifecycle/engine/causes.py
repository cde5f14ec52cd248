"""What led to some work: a call, or something that the driver has seen. One trace goes from there
through all that follows, in spans and in the log, also where no spans are sent anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vmdriver.errors import DriverError
from vmdriver.host import log_context

_tracer = trace.get_tracer("vmdriver")
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class Cause:
    """Spans of what it leads to are this one's children."""

    span: Span

    @property
    def trace(self) -> str:
        """Its id as the W3C's trace context has it."""
        return trace.format_trace_id(self.span.get_span_context().trace_id)

    def enter(self) -> None:
        """From now on, until the end of this task, all is done for it."""
        contexts.attach(trace.set_span_in_context(self.span))
        log_context.now_at(trace=self.trace)


@contextmanager
def asked(name: str, carrier: Mapping[str, str], sandbox_id: str) -> Iterator[None]:
    """Inside, a call of that name is answered. `carrier`: the caller's traceparent and tracestate,
    if there are any. Of what is raised, or was before it was turned into a status, the span has the
    reason alone: all else may be anything.
    """
    parent = _propagator.extract(carrier)
    whose = {"sandbox": sandbox_id} if sandbox_id else {}
    span = _tracer.start_span(name, parent, kind=SpanKind.SERVER, attributes=whose)
    cause, before = Cause(_told(span)), contexts.get_current()
    contexts.attach(trace.set_span_in_context(cause.span))
    try:
        with log_context.being_at(trace=cause.trace, sandbox=sandbox_id):
            yield
    except BaseException as error:
        why = error if isinstance(error, DriverError) else error.__context__
        reason = why.reason if isinstance(why, DriverError) else ""
        span.set_status(Status(StatusCode.ERROR, reason))
        raise
    finally:
        contexts.attach(before)
        span.end()


def current() -> Cause | None:
    """What led to what this task is at."""
    span = trace.get_current_span()
    return Cause(span) if span.get_span_context().is_valid else None


def seen(what: str, sandbox_id: str) -> Cause:
    """The driver has seen for itself that this is to be done."""
    span = _tracer.start_span(
        what, contexts.Context(), attributes={"sandbox": sandbox_id}
    )
    span.end()
    return Cause(_told(span))


def _told(span: Span) -> Span:
    """That one, or where nobody is sent any, one that only has an id."""
    if span.get_span_context().is_valid:
        return span
    of_its_own = SpanContext(
        trace_id=secrets.randbits(128) or 1,
        span_id=secrets.randbits(64) or 1,
        is_remote=False,
    )
    return trace.NonRecordingSpan(of_its_own)
