"""The edge of a composed driver: every call of the contract, and calls that we have never heard
of, as bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
from opentelemetry import metrics

from vmdriver.compose.base import SERVICE, Asked, Base, BaseRejected
from vmdriver.compose.driver import ComposedDriver
from vmdriver.compose.relay import Relay
from vmdriver.errors import DriverError, HostError, TimedOut, Unavailable
from vmdriver.lifecycle.engine.measures import BUCKETS_S

Flow = Callable[[bytes, Asked], Awaitable[bytes]]
_OTHER = "other"
"""Stands for every method that we do not know: there may be any number."""
_calls = metrics.get_meter("vmdriver").create_histogram(
    "vmdriver.composed.call.duration",
    unit="s",
    description="one call, with those of extensions and of the base",
    explicit_bucket_boundaries_advisory=BUCKETS_S,
)
_HOP_BY_HOP = ("grpc-", ":", "user-agent", "content-type", "te")


def _asked(context: Any) -> Asked:
    metadata = tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith(_HOP_BY_HOP)
    )
    return Asked(metadata, context.time_remaining())


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Every method of the service, by its path."""

    def __init__(self, driver: ComposedDriver, base: Base, relay: Relay) -> None:
        self._base = base
        self._relay = relay
        flows: Mapping[str, Flow] = {
            "GetCapabilities": driver.capabilities,
            "ValidateSandboxCreate": driver.validate,
            "CreateSandbox": driver.create,
            "GetSandbox": driver.get,
            "ListSandboxes": driver.listed,
            "StartSandbox": driver.start,
            "StopSandbox": driver.stop,
            "DeleteSandbox": driver.delete,
        }
        self._handlers: dict[str, Any] = {
            SERVICE + name: grpc.unary_unary_rpc_method_handler(_unary(flow, name))
            for name, flow in flows.items()
        }
        self._handlers[f"{SERVICE}WatchSandboxes"] = (
            grpc.unary_stream_rpc_method_handler(self._watch)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of one call; None for other services."""
        method = str(handler_call_details.method)
        if not method.startswith(SERVICE):
            return None
        known = self._handlers.get(method)
        if known is not None:
            return known
        return grpc.unary_unary_rpc_method_handler(
            _unary(self._forward(method), _OTHER)
        )

    def _forward(self, method: str) -> Flow:
        async def forward(raw: bytes, asked: Asked) -> bytes:
            return await self._base.call(method, raw, asked)

        return forward

    async def _watch(self, _raw: bytes, context: Any) -> AsyncIterator[bytes]:
        async for event in self._relay.watch():
            if event is None:
                text = "the events end here; watch again for the full list"
                await context.abort(grpc.StatusCode.ABORTED, text)
                return
            yield event


def _unary(flow: Flow, method: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def call(raw: bytes, context: Any) -> bytes:
        begun, outcome = time.monotonic(), "failed"
        try:
            answer = await flow(raw, _asked(context))
        except BaseRejected as error:
            outcome = "base refused"
            await context.abort(error.code, error.text, error.trailing)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except DriverError as error:
            broken = isinstance(error, HostError | Unavailable | TimedOut)
            outcome = "failed" if broken else "refused"
            raise
        else:
            outcome = "ok"
            return answer
        finally:
            took = time.monotonic() - begun
            _calls.record(took, {"method": method, "outcome": outcome})

    return call
