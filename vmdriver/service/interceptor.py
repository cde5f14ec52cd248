"""Errors to status codes, in one place. Nothing else aborts a call."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc

from vmdriver import errors
from vmdriver.host.visible import visible
from vmdriver.lifecycle.engine import causes
from vmdriver.model.ids import check_sandbox_id

_log = logging.getLogger(__name__)
STATUS: tuple[tuple[type[errors.DriverError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.TimedOut, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.HostError, grpc.StatusCode.INTERNAL),
)
_LONGEST_TEXT = 2000
_LOOKS = re.compile(r"/(?:(?:Get|List|Watch)\w*|Observe|(?:Ensure|Delete)Workspace)$")
"""Calls that lead to nothing: asked again and again, they would be most of all spans, and a watch's
would be as long as whoever watches stays.
"""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and the text that a caller gets. What is unknown stays opaque, with an
    id that the log has too.
    """
    if isinstance(error, errors.DriverError):
        for kind, code in STATUS:
            if isinstance(error, kind):
                return code, visible(error.text(), "\n")[:_LONGEST_TEXT]
    if isinstance(error, OSError) and error.errno is not None:
        _log.error("the host refused something", exc_info=error)
        return status_of(errors.unexpected(error))
    incident = uuid.uuid4().hex[:12]
    _log.error("incident %s", incident, exc_info=error)
    return (
        grpc.StatusCode.INTERNAL,
        f"internal error; incident {incident} in the driver's log",
    )


async def _abort(context: Any, method: str, error: BaseException) -> None:
    code, text = status_of(error)
    if isinstance(error, errors.DriverError):
        _log.info(
            "%s: %s: %s %s", method.rpartition("/")[2], code.name, text, error.detail
        )
    await context.abort(code, text)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Wraps every handler, unary and streaming."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Replace the handler by one that translates what it raises."""
        handler = await continuation(handler_call_details)
        streams = handler is not None and handler.request_streaming
        if handler is None or (streams and handler.response_streaming):
            return handler  # nobody's, or reflection's: none of ours streams both ways
        method = str(handler_call_details.method)
        if streams:
            return grpc.stream_unary_rpc_method_handler(
                _unary(handler.stream_unary, method, cut_off=True),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(handler.unary_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary, method),
            handler.request_deserializer,
            handler.response_serializer,
        )


def trace_of(context: Any) -> dict[str, str]:
    """The W3C trace context of a call, if it has one."""
    metadata = context.invocation_metadata() or ()
    names = {"traceparent", "tracestate"}
    return {key: str(value) for key, value in metadata if key in names}


def _asked(method: str, request: Any, context: Any) -> AbstractContextManager[None]:
    """For what is inside, which is done for that call."""
    name = method.rpartition("/")[2]
    return causes.asked(name, trace_of(context), _whose(request))


def _leads_somewhere(method: str) -> bool:
    return _LOOKS.search(method) is None


def _whose(request: Any) -> str:
    """The sandbox's id; "" where the call is about none, or has something else there."""
    named = getattr(request, "sandbox", None)
    found = getattr(request, "sandbox_id", "") or getattr(named, "id", "")
    try:
        return check_sandbox_id(found) if isinstance(found, str) else ""
    except errors.InvalidRequest:
        return ""


def _unary(
    inner: Callable[..., Awaitable[Any]], method: str, *, cut_off: bool = False
) -> Callable[..., Awaitable[Any]]:
    """`cut_off`: it ends with its client, which has not given all of its request."""

    async def call(request: Any, context: Any) -> Any:
        with _asked(method, request, context):
            return await answer(request, context)

    async def answer(request: Any, context: Any) -> Any:
        # In a task of its own: a client that goes away ends this handler, never what it
        # has begun.
        task = asyncio.ensure_future(inner(request, context))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Something inside was cancelled: a client must not wait for its own deadline.
            if task.cancelled():
                await _abort(
                    context, method, errors.Unavailable("the driver is shutting down")
                )
            if cut_off:
                task.cancel()
            task.add_done_callback(_consume)
            raise
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the one place that turns every error into a status
            await _abort(context, method, error)

    return call if _leads_somewhere(method) else answer


def _consume(task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.info("a call whose client went away ended with: %s", task.exception())


def _streaming(
    inner: Callable[..., AsyncIterator[Any]], method: str
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        with _asked(method, request, context):
            async for response in answers(request, context):
                yield response

    async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in inner(request, context):
                yield response
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - as above
            if context.done():  # whoever watched has gone: there is nobody to tell
                _log.info("%s: ended with nobody there: %s", method, error)
                return
            await _abort(context, method, error)

    return call if _leads_somewhere(method) else answers
