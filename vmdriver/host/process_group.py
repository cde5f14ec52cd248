"""A program in a session of its own: begun whole, and ended with all that it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

from vmdriver.errors import CommandError
from vmdriver.host.packages import way_to
from vmdriver.host.threads import finished

_ways_out = {
    errno.EMFILE: "raise how many files the driver may have open (LimitNOFILE= of its unit)",
    errno.ENFILE: "raise how many files may be open on this host (fs.file-max)",
    errno.EAGAIN: "raise how many processes the driver may have (TasksMax= of its unit)",
    errno.ENOMEM: "free memory on this host",
    errno.EACCES: "have it be executable",
}


async def created(
    arguments: Sequence[str],
    ends: tuple[int, int, int],
    environment: Mapping[str, str],
    *,
    cwd: str | None = "/",
    descriptors: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    """In a session of its own. CommandError. When cancelled, its whole group has ended: asyncio
    alone would kill its first process and then wait for whatever else holds its pipes, for ever
    where that does not end (base_subprocess.py, `_wait`).
    """
    begun: list[asyncio.subprocess.Process] = []

    async def create() -> None:
        begun.append(
            await asyncio.create_subprocess_exec(
                *arguments,
                stdin=ends[0],
                stdout=ends[1],
                stderr=ends[2],
                env=environment,
                cwd=cwd,
                pass_fds=descriptors,
                start_new_session=True,
            )
        )

    try:
        await finished(create())
    except OSError as error:
        raise cannot_run(arguments, error) from error
    except asyncio.CancelledError:
        for process in begun:
            await end_group(process)
        raise
    return begun[0]


async def end_group(process: asyncio.subprocess.Process) -> None:
    """Kill and reap it. What it has said and nobody has read is lost.

    Process.wait() returns when the pipes are at their end as well (asyncio/base_subprocess.py):
    never, where nobody reads any more, or where a program that left the group holds one.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]  # noqa: SLF001
    for number in range(3):
        pipe = transport.get_pipe_transport(number)
        if pipe is not None:
            pipe.close()
    await process.wait()


def name_of(arguments: Sequence[str]) -> str:
    """Its name; what only sets limits for another is not it."""
    words = [word for word in arguments if not word.startswith("-")]
    return words[words[0] == "prlimit"].rpartition("/")[2]


def cannot_run(arguments: Sequence[str], error: OSError) -> CommandError:
    """What is raised for it, with the way out where one is known."""
    return CommandError(
        f"{arguments[0]} cannot be run: {error.strerror}",
        detail=shlex.join(arguments),
        resolution=_ways_out.get(error.errno or 0) or way_to(name_of(arguments)),
    )
