"""The command line's side: one command, from its beginning to its exit code."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmdriver.errors import DriverError, InvalidRequest, Unavailable
from vmdriver.lifecycle.ports.programs import MOST_WORDS
from vmdriver.service.streams import frames
from vmdriver.service.streams.frames import Broken, Kind

_PART = 4096
Taken = Callable[[bytes], bytes | None]
"""What of input is sent on; None: whoever types wants to leave."""


class Left(Exception):
    """Whoever typed, or took the output, has left; the command is ended."""


@dataclass(frozen=True)
class Here:
    """What this process gives it: descriptors, and how output is written. `keys`: see Taken.
    `window`: rows and columns of the terminal, as they are now.
    """

    stdin: int
    out: Callable[[bytes], None]
    err: Callable[[bytes], None]
    begun: Callable[[], None] = lambda: None
    keys: Taken = field(default=lambda data: data)
    window: Callable[[], tuple[int, int]] | None = None


def run(path: Path, asked: dict[str, Any], here: Here) -> int:
    """Its exit code. DriverError with the driver's words; Unavailable where commands are not
    served or the driver has gone; InvalidRequest; Left. However this ends, the command does too.
    """
    first = frames.pack_document(Kind.ASK, asked)
    if len(first) > frames.HEAD.size + frames.MOST:
        text = f"is longer than {MOST_WORDS} bytes; give the rest as input"
        raise InvalidRequest("command", text)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            connection.connect(str(path))
        except OSError as error:
            raise _not_served(path, error) from error
        try:
            connection.sendall(first)
            resized = stack.enter_context(_resizes()) if here.window else None
            return _Conversation(connection, here, resized).run()
        except (ConnectionError, EOFError, Broken) as error:
            raise Unavailable(
                "the driver has gone; the command in the guest ends by itself",
                detail=repr(error),
            ) from error


def _not_served(path: Path, error: OSError) -> Unavailable:
    way_out = "set operator_exec = true and restart the driver (vmdriver serve)"
    if isinstance(error, PermissionError):
        way_out = "the socket is for the user that the driver runs as: ask as root"
    return Unavailable(
        f"no driver serves operators' commands on {path}",
        detail=str(error),
        resolution=way_out,
    )


@contextlib.contextmanager
def _resizes() -> Iterator[socket.socket]:
    """A socket that can be read when the terminal has another size."""
    theirs, ours = socket.socketpair()
    for end in (theirs, ours):
        end.setblocking(False)

    def note(_number: int, _frame: object) -> None:
        with contextlib.suppress(OSError):
            ours.send(b".")

    known = signal.signal(signal.SIGWINCH, note)
    try:
        yield theirs
    finally:
        signal.signal(signal.SIGWINCH, known)
        theirs.close()
        ours.close()


def _write(out: Callable[[bytes], None], content: bytes) -> None:
    try:
        out(content)
    except BrokenPipeError as error:
        raise Left from error


class _Conversation:
    """Waits for either side, and sends no more input than is acknowledged."""

    def __init__(
        self, connection: socket.socket, here: Here, resized: socket.socket | None
    ) -> None:
        self._connection, self._here, self._resized = connection, here, resized
        self._selector = selectors.DefaultSelector()
        self._heard = bytearray()
        self._room = frames.WINDOW
        self._over = False
        self._reads_input = False

    def run(self) -> int:
        self._selector.register(self._connection, selectors.EVENT_READ)
        if self._resized is not None:
            self._selector.register(self._resized, selectors.EVENT_READ)
        with self._selector:
            while True:
                self._want_input()
                ready = {key.fileobj for key, _ in self._selector.select()}
                if self._connection in ready:
                    code = self._hear()
                    if code is not None:
                        return code
                if self._here.stdin in ready:
                    self._type()
                if self._resized is not None and self._resized in ready:
                    self._resize(self._resized)

    def _want_input(self) -> None:
        """Of a file, which cannot be waited for, there is always more."""
        wanted = not self._over and self._room >= _PART
        if wanted is self._reads_input:
            return
        try:
            if wanted:
                self._selector.register(self._here.stdin, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._here.stdin)
        except PermissionError:  # epoll(7) knows no plain files
            self._type()
            return
        self._reads_input = wanted

    def _type(self) -> None:
        try:
            data = os.read(self._here.stdin, _PART)
        except OSError:
            data = b""  # a terminal that has hung up
        sent = self._here.keys(data)
        if sent is None:
            raise Left
        if sent:
            self._room -= len(sent)
            self._tell(frames.pack(Kind.INPUT, sent))
        if not data:
            self._over = True
            self._tell(frames.pack(Kind.INPUT_ENDS))

    def _tell(self, frame: bytes) -> None:
        """A driver that hears nothing more may have said before how the command has ended."""
        try:
            self._connection.sendall(frame)
        except ConnectionError:
            self._over = True

    def _resize(self, resized: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            resized.recv(1024)
        if self._here.window is not None:
            rows, columns = self._here.window()
            document = {"rows": rows, "columns": columns}
            self._tell(frames.pack_document(Kind.RESIZE, document))

    def _hear(self) -> int | None:
        data = self._connection.recv(frames.MOST)
        if not data:
            raise EOFError
        self._heard += data
        while len(self._heard) >= frames.HEAD.size:
            kind, length = frames.parse_head(bytes(self._heard[: frames.HEAD.size]))
            whole = frames.HEAD.size + length
            if len(self._heard) < whole:
                break
            content = bytes(self._heard[frames.HEAD.size : whole])
            del self._heard[:whole]
            code = self._take(kind, content)
            if code is not None:
                return code
        return None

    def _take(self, kind: Kind, content: bytes) -> int | None:
        match kind:
            case Kind.OUT:
                _write(self._here.out, content)
            case Kind.ERR:
                _write(self._here.err, content)
            case Kind.TAKEN:
                self._room += int(content)
            case Kind.BEGUN:
                self._here.begun()
            case Kind.CODE:
                return int(content)
            case Kind.FAILED:
                said = frames.parse_document(content)
                raise DriverError(
                    str(said.get("message")),
                    reason=str(said.get("reason")),
                    resolution=str(said.get("resolution", "")),
                )
            case _:
                raise Broken(f"{kind.name} is none of a driver's")
        return None
