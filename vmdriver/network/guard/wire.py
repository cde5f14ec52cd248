"""Netlink: messages, attributes, dumps, requests. Blocking, and without a program or a thread of
its own, so that a look at many tables costs milliseconds. Formats: netlink(7), linux/netlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROUTE, NETFILTER = 0, 12
_REQUEST, _ANSWERED, _INTERRUPTED, _DUMP = 0x1, 0x4, 0x10, 0x300
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_BITS = 0x3FFF
_ANSWER_S = 5.0
_READ_BYTES = 1 << 17
_EVENT_BYTES = 1 << 20
"""Of events that wait to be read: a flush of a thousand rules has room several times."""


class Refused(OSError):
    """The kernel's answer to a request, with its own number."""


class Message(NamedTuple):
    """One of a datagram."""

    kind: int
    flags: int
    payload: bytes


def open_socket(protocol: int, groups: tuple[int, ...] = ()) -> socket.socket:
    """In the network namespace of the calling thread, where it stays. With `groups` it is for
    events, and does not block. OSError.
    """
    found = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
    )
    try:
        if groups:
            # Beyond the administrator's limit, which a privileged process may; else as far as that.
            forced = getattr(socket, "SO_RCVBUFFORCE", 33)
            found.setsockopt(socket.SOL_SOCKET, forced, _EVENT_BYTES)
        found.bind((0, 0))
        for group in groups:
            found.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        found.settimeout(0 if groups else _ANSWER_S)
    except BaseException:
        found.close()
        raise
    return found


def messages(data: bytes) -> Iterator[Message]:
    """Each message in a datagram."""
    offset = 0
    while offset + _MESSAGE.size <= len(data):
        length, kind, flags, _, _ = _MESSAGE.unpack_from(data, offset)
        if length < _MESSAGE.size:
            return
        yield Message(kind, flags, data[offset + _MESSAGE.size : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type and content of each attribute from there on."""
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_BITS, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, content: bytes) -> bytes:
    """One of them, padded."""
    length = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(length, kind) + content + b"\0" * (-length % 4)


def dump(asked: socket.socket, kind: int, payload: bytes) -> list[bytes]:
    """Payloads of all messages of the answer. OSError: EAGAIN where what is listed has changed
    meanwhile, and TimeoutError.
    """
    length = _MESSAGE.size + len(payload)
    asked.send(_MESSAGE.pack(length, kind, _REQUEST | _DUMP, 1, 0) + payload)
    found: list[bytes] = []
    torn = False
    while True:
        for answer, flags, content in messages(asked.recv(_READ_BYTES)):
            torn |= bool(flags & _INTERRUPTED)
            if answer == _ERROR:
                (code,) = struct.unpack_from("=i", content)
                raise OSError(-code, f"netlink message {kind:#x} was refused")
            if answer == _DONE:
                if torn:
                    raise OSError(errno.EAGAIN, "what was listed has changed meanwhile")
                return found
            found.append(content)


def dumped(asked: socket.socket, kind: int, family: int) -> list[bytes]:
    """The same of one family, and read again where it has changed meanwhile. OSError."""
    payload = struct.pack("=B19x", family)
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            return dump(asked, kind, payload)
    return dump(asked, kind, payload)


def requested(asked: socket.socket, requests: Sequence[tuple[int, int, bytes]]) -> None:
    """Have these (kind, flags, payload) done in this order. OSError; Refused by the first that the
    kernel does not do, when it has come to the end of all.
    """
    asked.send(
        b"".join(
            _message(kind, flags | _REQUEST | _ANSWERED, number, payload)
            for number, (kind, flags, payload) in enumerate(requests)
        )
    )
    left, refused = len(requests), None
    while left:
        for answer, _, content in messages(asked.recv(_READ_BYTES)):
            left -= 1
            try:
                _check(answer, content)
            except Refused as error:
                refused = refused or error
    if refused is not None:
        raise refused


def answered(asked: socket.socket, kind: int, payload: bytes) -> bytes:
    """Payload of the one message that is asked for. OSError; Refused, such as with ENODEV."""
    asked.send(_message(kind, _REQUEST, 0, payload))
    for answer, _, content in messages(asked.recv(_READ_BYTES)):
        if answer != _ERROR:
            return content
        _check(answer, content)
    raise OSError(errno.EPROTO, "the kernel does not answer")


def _check(answer: int, content: bytes) -> None:
    if answer != _ERROR:
        raise OSError(errno.EPROTO, "the kernel answers something else")
    (code,) = struct.unpack_from("=i", content)
    if code:
        raise Refused(-code, os.strerror(-code))


def _message(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    length = _MESSAGE.size + len(payload)
    padding = b"\0" * (-length % 4)
    return _MESSAGE.pack(length, kind, flags, number, 0) + payload + padding
