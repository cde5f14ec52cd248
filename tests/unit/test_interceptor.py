"""How a stream ends that nobody reads any more."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from vmdriver.errors import Refused
from vmdriver.service.interceptor import ErrorInterceptor


class Stream:
    """A server's view of one call. `gone`: its client is, so that no status can be sent."""

    def __init__(self, *, gone: bool) -> None:
        self._gone, self.told = gone, ""

    def done(self) -> bool:
        return self._gone

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        if self._gone:
            raise RuntimeError("execute_batch failed")
        self.told = f"{code.name}: {text}"
        raise grpc.aio.AbortError


async def ended(context: Stream, error: Exception) -> list[Any]:
    """What a reader gets of a stream that fails after its first event."""

    async def inner(_request: Any, _context: Any) -> AsyncIterator[str]:
        yield "first"
        raise error

    async def found(_details: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(inner)

    details: Any = SimpleNamespace(method="/service/Watch")
    handler = await ErrorInterceptor().intercept_service(found, details)
    return [event async for event in handler.unary_stream("", context)]


async def test_a_stream_that_fails_ends_with_its_status() -> None:
    context = Stream(gone=False)
    with pytest.raises(grpc.aio.AbortError):
        await ended(context, Refused("no"))
    assert context.told == "FAILED_PRECONDITION: no"


async def test_a_stream_whose_reader_is_gone_is_no_incident(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        seen = await ended(Stream(gone=True), RuntimeError("cannot be sent"))
    assert seen == ["first"]
    assert "incident" not in caplog.text
    assert "nobody there: cannot be sent" in caplog.text
