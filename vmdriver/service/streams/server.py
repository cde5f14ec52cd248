"""The driver's side: one connection, one command."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmdriver.errors import DriverError, Exhausted, InvalidRequest, unexpected
from vmdriver.host.unix_socket import peer_of
from vmdriver.host.visible import visible
from vmdriver.lifecycle.control.commands import Asked, Commands
from vmdriver.lifecycle.ports.programs import MOST_GIVEN, MOST_SAID, Program, Window
from vmdriver.model.mistakes import first_mistake
from vmdriver.service.server import check_path, remove_stale, secure_directory
from vmdriver.service.streams import frames
from vmdriver.service.streams.frames import Broken, Kind

_log = logging.getLogger(__name__)
_ASK_S = 10.0
_MOST_WAITING = 2**18
"""Bytes for a client that it has not taken: then the guest is asked for none, and given none."""
_MOST_CONNECTIONS = 64
_NOBODY = 2**32 - 1
"""A login that never was (proc(5), /proc/pid/loginuid)."""


class _WindowAsked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rows: int = Field(ge=0, le=9999)
    columns: int = Field(ge=0, le=9999)


class _AskedAsIs(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sandbox: str = Field(min_length=1, max_length=300)
    words: list[str] = Field(min_length=1, max_length=256)
    as_root: bool = False
    alone: bool = False
    window: _WindowAsked | None = None
    term: str = Field("", max_length=31)
    timeout_s: float = Field(0.0, ge=0, le=10**7, allow_inf_nan=False)


class _Ends:
    """A client's input and output, for the command."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._input = bytearray()
        self._over = False
        self._window: Window | None = None
        self.woken = asyncio.Event()

    def given(self) -> tuple[bytes, bool]:
        if not self._is_heard():  # nor are the acknowledgements of what would be taken
            return b"", self._over and not self._input
        rest = len(self._input) > MOST_GIVEN
        return bytes(self._input[:MOST_GIVEN]), self._over and not rest

    def took(self, count: int) -> None:
        if count:
            del self._input[:count]
            self._writer.write(frames.pack(Kind.TAKEN, str(count).encode()))

    def room(self) -> int:
        return MOST_SAID if self._is_heard() else 0

    def _is_heard(self) -> bool:
        return self._writer.transport.get_write_buffer_size() < _MOST_WAITING

    def said(self, out: bytes, err: bytes) -> None:
        for kind, content in ((Kind.OUT, out), (Kind.ERR, err)):
            if content:
                self._writer.write(frames.pack(kind, content))

    def window(self) -> Window | None:
        window, self._window = self._window, None
        return window

    def begun(self) -> None:
        self._writer.write(frames.pack(Kind.BEGUN))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Take what the client sends, up to its end. Broken, OSError."""
        while (frame := await frames.read(reader)) is not None:
            kind, content = frame
            if kind is Kind.INPUT and not self._over:
                self._input += content
                if len(self._input) > frames.WINDOW:
                    raise Broken("more input than was acknowledged")
            elif kind is Kind.INPUT_ENDS:
                self._over = True
            elif kind is Kind.RESIZE:
                found = _valid(_WindowAsked, content)
                self._window = Window(found.rows, found.columns)
            else:
                raise Broken(f"{kind.name} is none of a client's")
            self.woken.set()


def _valid(kind: Any, content: bytes) -> Any:
    try:
        return kind.model_validate(frames.parse_document(content))
    except ValidationError as error:
        where, what = first_mistake(error)
        raise Broken(f"{where}: {what}") from error


class StreamServer:
    """Serves on a socket, 0600, until it is closed."""

    def __init__(self, commands: Callable[[], Awaitable[Commands]]) -> None:
        """`commands`: there when the driver has recovered."""
        self._commands = commands
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def start(self, path: Path) -> None:
        """ConfigError for a path that cannot be a socket's."""
        check_path(path, "admin_socket")
        secure_directory(path.parent)
        await remove_stale(path)
        self._server = await asyncio.start_unix_server(self._accept, path)
        path.chmod(0o600)
        self._path = path

    async def close(self) -> None:
        """Every command that runs is ended."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=1.0)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= _MOST_CONNECTIONS:
            text = f"{_MOST_CONNECTIONS} operators' commands are asked for already"
            writer.write(_failed(Exhausted(text)))  # at once, or not at all
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, Broken) as error:
            _log.info("an operator's command: the connection ended: %s", error)
        finally:
            self._connections.discard(task)
            writer.transport.abort()  # what is left, nobody has waited for

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        who = _peer(writer.get_extra_info("socket"))
        async with asyncio.timeout(_ASK_S):
            first = await frames.read(reader)
        if first is None:
            return
        ends = _Ends(writer)
        listening = asyncio.ensure_future(ends.listen(reader))
        running = asyncio.ensure_future(self._run(first, ends, who))
        both = {listening, running}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                writer.write(running.result())
                # For as long as it is there: it may be stopped, or write to one that is (`less`).
                writer.transport.set_write_buffer_limits(0)
                await writer.drain()
            else:
                listening.result()  # what was wrong with it
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)

    async def _run(self, first: tuple[Kind, bytes], ends: _Ends, who: str) -> bytes:
        """The last frame."""
        try:
            asked = _asked(first)
            code = await (await self._commands()).run(asked, ends, who)
        except DriverError as error:
            _log.info(
                "%s: an operator's command was not run to its end: %s",
                who,
                error.reason,
            )
            return _failed(error)
        except Exception as error:  # noqa: BLE001 - the one place that tells a client
            _log.exception("an operator's command")
            return _failed(unexpected(error))
        return frames.pack(Kind.CODE, str(code).encode())


def _asked(first: tuple[Kind, bytes]) -> Asked:
    kind, content = first
    if kind is not Kind.ASK:
        raise InvalidRequest("command", "the connection does not begin with it")
    try:
        found = _valid(_AskedAsIs, content)
    except Broken as error:
        raise InvalidRequest("command", str(error)) from error
    window = found.window and Window(found.window.rows, found.window.columns)
    program = Program(tuple(found.words), found.as_root, window, found.term)
    return Asked(found.sandbox, program, found.timeout_s, found.alone)


def _failed(error: DriverError) -> bytes:
    told = {"reason": error.reason, "message": visible(error.message, "\n")[:2000]}
    resolution = visible(error.resolution, "\n")[:2000]
    return frames.pack_document(Kind.FAILED, {**told, "resolution": resolution})


def _peer(connection: socket.socket) -> str:
    """Who asks, by the kernel's word: user, process, and whose login that is."""
    pid, uid = peer_of(connection)
    login = ""
    with contextlib.suppress(OSError, ValueError):
        number = int(Path(f"/proc/{pid}/loginuid").read_text())
        login = f", logged in as uid {number}" if number != _NOBODY else ""
    mine = " (the driver's)" if uid == os.geteuid() else ""
    return f"uid {uid}{mine}, process {pid}{login}"
