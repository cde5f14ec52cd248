"""Requests to the agent in the guest (images/guest/agent.c says what it knows).

The guest is not trusted: its answers are short, counted, and waited for with a deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from vmdriver.errors import GuestRefused, HypervisorError, TimedOut
from vmdriver.model.record import REFUSED_TO

CHANNEL = "org.openshell.vmdriver.0"
"""Name of the virtio-serial port."""
_RESET = b"\xff"
_LONGEST_LINE = 4096
LONGEST_ANSWER = 17 * 1024
"""Of any verb: COMMANDS_REPLY of commands.h, and the request's number. Whatever is asked, an answer
to somebody before may still come first: a question that was asked twice is answered twice.
"""
_MOST_LINES = 256
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.5
_numbers = (f"{os.getpid():x}.{time.time_ns():x}.{n:x}" for n in itertools.count(1))
"""Never the same number twice, whichever process asks."""
Fields = Callable[[], Mapping[str, str]]
"""What goes with a request, of the moment at which it is made."""
_FIELD = re.compile(r"([a-z_]{1,32})=([A-Za-z0-9_.:-]{1,128})")


async def ask(
    path: str,
    verb: str,
    fields: Fields,
    timeout_s: float,
    begin: Callable[[], Awaitable[None]] | None = None,
) -> dict[str, str]:
    """Send one request over the channel's socket; the short fields of the answer. Errors as of
    `ask_text`.
    """
    return dict(_FIELD.findall(await ask_text(path, verb, fields, timeout_s, begin)))


async def ask_text(
    path: str,
    verb: str,
    fields: Fields,
    timeout_s: float,
    begin: Callable[[], Awaitable[None]] | None = None,
    longest: int = _LONGEST_LINE,
) -> str:
    """The same; the answer as it was said, at most `longest` bytes of it. With `begin`, the
    machine runs when that has returned: the channel is open before, the request is made then.

    TimedOut when the guest does not answer, GuestRefused with the guest's own (cleaned) words when
    it says no, HypervisorError where it cannot be asked; what `begin` raises.
    """
    with _said(verb, timeout_s):
        async with asyncio.timeout(timeout_s):
            reader, writer = await _connected(path)
    try:
        if begin is not None:
            await begin()
        number, given = next(_numbers), fields()
        words = [number, verb, *(f"{key}={value}" for key, value in given.items())]
        request = _RESET + " ".join(words).encode() + b"\n"
        with _said(verb, timeout_s):
            async with asyncio.timeout(timeout_s):
                answer = await _exchange(reader, writer, request, number)
                if len(answer) > longest:
                    raise OSError("the guest says more than it may")
                return _parse(verb, answer)
    finally:
        writer.close()


async def _connected(
    path: str,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """QEMU serves one connection and lets two more wait (libvirt listens with a backlog of 1). Who
    comes then is told EAGAIN at once, which asyncio takes for a connection that is being made:
    its first write fails. Instead it is tried again, until whoever asks gives up.
    """
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(path)
            return await asyncio.open_unix_connection(
                sock=connection, limit=LONGEST_ANSWER
            )
        except BlockingIOError:
            connection.close()
        except BaseException:
            connection.close()
            raise
        await asyncio.sleep(_FIRST_PAUSE_S)


@contextmanager
def _said(verb: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise TimedOut(
            f"the guest did not answer {verb!r} within {timeout_s:g} s"
        ) from error
    except (OSError, ValueError) as error:
        raise HypervisorError(
            f"the guest cannot be asked to {verb}", detail=repr(error)
        ) from error


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: bytes,
    number: str,
) -> str:
    """Ask until there is an answer. QEMU 7.2 leaves what comes with a new connection lying
    while it is idle, until something else comes (measured: a fresh connection's first
    request stalled in 7 of 31 tries, a second byte freed it each time). The agent answers
    a repeated number without doing anything again.
    """
    pause_s = _FIRST_PAUSE_S
    answer = asyncio.ensure_future(_answer(reader, number))
    try:
        while not answer.done():
            writer.write(request)
            await writer.drain()
            await asyncio.wait({answer}, timeout=pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return answer.result()
    finally:
        answer.cancel()


async def _answer(reader: asyncio.StreamReader, number: str) -> str:
    for _ in range(_MOST_LINES):
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise OSError("the channel was closed")
        found, _, rest = line.decode("ascii", errors="replace").strip().partition(" ")
        if found == number:
            return rest
    raise OSError("the guest answers something else")


def _parse(verb: str, text: str) -> str:
    status, _, rest = text.partition(" ")
    if status != "ok":
        words = "".join(c if c.isprintable() else "?" for c in rest)[:300]
        raise GuestRefused(f"{REFUSED_TO} {verb}: {words}")
    return rest
