"""What goes over the socket: frames of one letter, four bytes of length (big-endian), content."""

from __future__ import annotations

import asyncio
import json
import struct
from enum import Enum
from typing import Any

HEAD = struct.Struct("!cI")
MOST = 2**16
"""Bytes of content."""
WINDOW = 2**16
"""Bytes of input that a client may send before they are acknowledged."""


class Kind(Enum):
    """Whose, and what."""

    ASK = b"A"
    """Client: the command, a JSON object; once, first."""
    INPUT = b"I"
    INPUT_ENDS = b"E"
    RESIZE = b"W"
    """Client: rows and columns, a JSON object."""
    BEGUN = b"B"
    """Driver: it runs."""
    TAKEN = b"T"
    """Driver: so many bytes of input have been taken, a decimal number."""
    OUT = b"O"
    ERR = b"X"
    CODE = b"C"
    """Driver, last: the exit code, a decimal number."""
    FAILED = b"F"
    """Driver, last: reason, message, a JSON object."""


class Broken(Exception):
    """What came is no frame, or not of this place."""


def pack(kind: Kind, content: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(kind.value, len(content)) + content


def pack_document(kind: Kind, document: dict[str, Any]) -> bytes:
    """One frame with a JSON object."""
    return pack(kind, json.dumps(document).encode())


def parse_head(head: bytes) -> tuple[Kind, int]:
    """Kind and length of what follows. Broken."""
    letter, length = HEAD.unpack(head)
    if length > MOST:
        raise Broken(f"a frame of {length} bytes")
    try:
        return Kind(letter), length
    except ValueError as error:
        raise Broken(f"a frame of kind {letter!r}") from error


def parse_document(content: bytes) -> dict[str, Any]:
    """Of a frame. Broken."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Broken("no JSON") from error
    if not isinstance(found, dict):
        raise Broken("no JSON object")
    return found


async def read(reader: asyncio.StreamReader) -> tuple[Kind, bytes] | None:
    """The next frame; None at the end. Broken, OSError."""
    try:
        kind, length = parse_head(await reader.readexactly(HEAD.size))
        return kind, await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Broken("it ends within a frame") from error
        return None
