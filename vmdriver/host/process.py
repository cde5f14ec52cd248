"""Runs commands. The only module that may, beside process_group: argument lists, a clean
environment, a deadline, an own process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shlex
import signal
import subprocess  # noqa: TID251 - this is that module
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import CommandError, Killed, Late
from vmdriver.host import strays
from vmdriver.host.confined.box import Box
from vmdriver.host.process_group import cannot_run, created, end_group, name_of

_log = logging.getLogger(__name__)
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}
_KEPT_OUTPUT = 4000
_MOST_OUTPUT = 64 * 2**20
"""Bytes that any program may say: what it works on may have taken it over."""
_AGAIN_S = 0.3
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that a program gets from others; the rest tell of its own faults and limits."""
_BY_SIGNAL, _NOT_THERE = 128, 127
"""What bwrap and setpriv say of the program in a box."""


@dataclass(frozen=True)
class Completed:
    """A command that ended with status 0."""

    stdout: bytes
    stderr: bytes


def _tail(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-_KEPT_OUTPUT:]


def _last_words(output: bytes) -> str:
    """The last line that says something; some tools underline their complaint."""
    lines = [line.strip() for line in _tail(output).splitlines()]
    return next((line for line in reversed(lines) if line.strip("^~ ")), "")[:400]


_marks: dict[str, str] = {}


def mark_helpers(value: str) -> None:
    """From now on every program that `run` runs carries this mark: see `strays`."""
    _marks[strays.VARIABLE] = value


async def spawn(arguments: Sequence[str]) -> asyncio.subprocess.Process:
    """Begin a program that goes on beside us and after us, in a session of its own, deaf and
    dumb. CommandError.
    """
    nothing = asyncio.subprocess.DEVNULL
    return await created(arguments, (nothing, nothing, nothing), ENVIRONMENT)


class Helper:
    """A program that runs beside a thread of ours, which waits for it."""

    def __init__(self, program: subprocess.Popen[bytes]) -> None:
        self._program = program

    def kill(self) -> None:
        """It has ended when this returns. Fine with one that has."""
        if self._program.poll() is None:
            os.killpg(self._program.pid, signal.SIGKILL)
            self._program.wait()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal; fine with one that has ended."""
        self._program.send_signal(number)

    def wait(self, deadline_s: float | None = None) -> None:
        """Until it has ended; killed where it has not by then."""
        try:
            self._program.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._program.poll() is None

    def ended(self) -> str:
        """How it did, in words."""
        code = self._program.returncode
        return signal.Signals(-code).name if code < 0 else f"status {code}"


def begin(
    arguments: Sequence[str],
    descriptors: Sequence[int] = (),
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Helper:
    """Begin a program that gets these descriptors, by their numbers, and nothing else: no input, a
    session of its own, and no output but what becomes `log`. `environment`: variables besides the
    usual ones. For threads. CommandError, OSError.
    """
    with contextlib.ExitStack() as files:
        output = files.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        try:
            program = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**ENVIRONMENT, **_marks, **(environment or {})},
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError as error:
            raise cannot_run(arguments, error) from error
    return Helper(program)


@contextlib.asynccontextmanager
async def conversation(
    arguments: Sequence[str], *, deadline_s: float
) -> AsyncIterator[tuple[int, Callable[[str, str], Awaitable[None]]]]:
    """A program that is told lines and answers each with one: its pid, and what tells one ("" for
    none) and waits for the answer. It is killed at the end. CommandError.
    """
    pipe, same = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await created(arguments, (pipe, pipe, same), {**ENVIRONMENT, **_marks})

    async def ask(words: str, wanted: str) -> None:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        if words:
            process.stdin.write(f"{words}\n".encode())
        answer = (await process.stdout.readline()).decode(errors="replace").strip()
        if answer != wanted:
            text = f"{arguments[0]} said {answer[:200]!r}, not {wanted!r}"
            raise CommandError(text, detail=shlex.join(arguments))

    try:
        async with asyncio.timeout(deadline_s):
            yield process.pid, ask
    except TimeoutError as error:
        text = f"{arguments[0]} took longer than {deadline_s:g} s"
        raise CommandError(text, detail=shlex.join(arguments)) from error
    finally:
        await end_group(process)


async def run(
    arguments: Sequence[str],
    *,
    deadline_s: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    tries: int = 1,
    box: Box | None = None,
    keep: Sequence[int] = (),
) -> Completed:
    """Run a command to its end; in a box, if one is given.

    Raises CommandError when it is missing, ends with another status than 0, says more than 64 MiB,
    or takes longer than `deadline_s`. When cancelled or late, its whole process group is killed
    and reaped before this returns, and a box with all that is in it. `tries`: so often within the
    deadline, where it does no harm to begin it again: somebody else may have killed it. `keep`:
    open files that it gets under the same numbers.
    """
    end = time.monotonic() + deadline_s
    command = _Command(tuple(arguments), box, tuple(keep))
    for number in range(1, tries):
        try:
            left_s = end - time.monotonic()
            return await _run(command, left_s, deadline_s, stdin, environment)
        except CommandError as error:
            if time.monotonic() + _AGAIN_S > end:
                raise
            text = "%s; it is tried again (%d of %d)"
            _log.warning(text, error, number + 1, tries)
        await asyncio.sleep(_AGAIN_S)
    left_s = end - time.monotonic()
    return await _run(command, left_s, deadline_s, stdin, environment)


@dataclass(frozen=True)
class _Command:
    """What is run, and in what."""

    arguments: tuple[str, ...]
    box: Box | None
    keep: tuple[int, ...]

    def words(self, given: Sequence[int]) -> Sequence[str]:
        """With the box around it."""
        return self.box.around(self.arguments, given) if self.box else self.arguments

    def descriptors(self, given: Sequence[int]) -> tuple[int, ...]:
        """Open files that it gets."""
        return (*self.keep, *given, *(self.box.descriptors() if self.box else ()))

    @contextlib.contextmanager
    def given(self) -> Iterator[list[int]]:
        """The content that its box has, as open files."""
        found: list[int] = []
        try:
            for path, content in self.box.given if self.box else ():
                found.append(os.memfd_create(path.name))
                os.write(found[-1], content)
                os.lseek(found[-1], 0, os.SEEK_SET)
            yield found
        finally:
            for descriptor in found:
                os.close(descriptor)

    def signal(self, status: int) -> int:
        """That it ended by; 0 for none. In a box, bwrap says it as a shell does."""
        if self.box and status > _BY_SIGNAL:
            return status - _BY_SIGNAL
        return max(0, -status)


async def _begun(
    command: _Command, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    with command.given() as given:
        words = command.words(given)
        return await created(
            words,
            (pipe, pipe, pipe),
            {**ENVIRONMENT, **environment, **_marks},
            cwd=None,
            descriptors=command.descriptors(given),
        )


class _TalkativeError(Exception):
    """A program said more than anybody wants to hear."""


async def _communicate(
    process: asyncio.subprocess.Process, stdin: bytes
) -> tuple[bytes, bytes]:
    """What it says on both ways, up to its end. _TalkativeError."""

    async def say() -> None:
        if process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(stdin)
            await process.stdin.drain()
        process.stdin.close()

    async def hear(stream: asyncio.StreamReader | None) -> bytes:
        found, size = bytearray(), 0
        while stream is not None and (more := await stream.read(2**16)):
            size += len(more)
            if size <= _MOST_OUTPUT:
                found += more
            elif found:  # what is under way still has to be taken
                found.clear()
                await end_group(process)
        if size > _MOST_OUTPUT:
            raise _TalkativeError
        return bytes(found)

    ways = [hear(process.stdout), hear(process.stderr)]
    tasks = [asyncio.ensure_future(way) for way in ways]
    saying = asyncio.ensure_future(say())
    try:
        stdout, stderr = await asyncio.gather(*tasks)
        await process.wait()
        return stdout, stderr
    finally:
        for task in (*tasks, saying):
            task.cancel()
        await asyncio.wait((*tasks, saying))


async def _run(
    command: _Command,
    left_s: float,
    deadline_s: float,
    stdin: bytes,
    environment: Mapping[str, str] | None,
) -> Completed:
    arguments = command.arguments
    shown = shlex.join(arguments)
    process = await _begun(command, environment or {})
    begun = time.monotonic()
    try:
        async with asyncio.timeout(left_s):
            stdout, stderr = await _communicate(process, stdin)
    except TimeoutError as error:
        await end_group(process)
        raise Late(
            f"{arguments[0]} took longer than {deadline_s:g} s", detail=shown
        ) from error
    except _TalkativeError as error:
        await end_group(process)
        text = f"{arguments[0]} said more than {_MOST_OUTPUT} bytes"
        raise CommandError(text, detail=shown) from error
    except asyncio.CancelledError:
        await end_group(process)
        raise
    _log.debug("outside: %s took %.4f s", arguments[0], time.monotonic() - begun)
    if (number := command.signal(process.returncode or 0)) in _FROM_OUTSIDE:
        name = signal.Signals(number).name
        raise Killed(f"{name_of(arguments)} was killed ({name})", detail=shown)
    if command.box and process.returncode == _NOT_THERE:
        raise cannot_run(arguments, FileNotFoundError(errno.ENOENT, "not there"))
    if process.returncode != 0:
        last_line = _last_words(stderr or stdout)
        raise CommandError(
            f"{arguments[0]} ended with status {process.returncode}: {last_line}",
            detail=f"{shown}\n{_tail(stderr)}",
        )
    return Completed(stdout, stderr)
