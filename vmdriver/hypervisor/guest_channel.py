"""Requests to the agent in the guest (images/guest/agent.c says what it knows).

The guest is not trusted: its answers are short, counted, and waited for with a deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping

from vmdriver.errors import HypervisorError, TimedOut

CHANNEL = "org.openshell.vmdriver.0"
"""Name of the virtio-serial port."""
_RESET = b"\xff"
_LONGEST_LINE = 4096
_MOST_LINES = 32
_numbers = itertools.count(1)
_FIELD = re.compile(r"([a-z_]{1,32})=([A-Za-z0-9_.:-]{1,128})")


async def ask(
    path: str, verb: str, fields: Mapping[str, str], timeout_s: float
) -> dict[str, str]:
    """Send one request over the channel's socket; the fields of the answer.

    TimedOut when the guest does not answer, HypervisorError with the guest's own (cleaned)
    words when it says no.
    """
    number = str(next(_numbers))
    words = [number, verb, *(f"{key}={value}" for key, value in fields.items())]
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(
                path, limit=_LONGEST_LINE
            )
            try:
                writer.write(_RESET + " ".join(words).encode() + b"\n")
                await writer.drain()
                return _parse(verb, await _answer(reader, number))
            finally:
                writer.close()
    except TimeoutError as error:
        raise TimedOut(
            f"the guest did not answer {verb!r} within {timeout_s:g} s"
        ) from error
    except (OSError, ValueError) as error:
        raise HypervisorError(
            f"the guest cannot be asked to {verb}", detail=repr(error)
        ) from error


async def _answer(reader: asyncio.StreamReader, number: str) -> str:
    for _ in range(_MOST_LINES):
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise OSError("the channel was closed")
        found, _, rest = line.decode("ascii", errors="replace").strip().partition(" ")
        if found == number:
            return rest
    raise OSError("the guest answers something else")


def _parse(verb: str, text: str) -> dict[str, str]:
    status, _, rest = text.partition(" ")
    if status != "ok":
        words = "".join(c if c.isprintable() else "?" for c in rest)[:300]
        raise HypervisorError(f"the guest refused to {verb}: {words}")
    return dict(_FIELD.findall(rest))
