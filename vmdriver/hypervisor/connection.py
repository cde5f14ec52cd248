"""One libvirt connection, its event thread and its threads; libvirt's errors end
here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import libvirt

from vmdriver.errors import (
    HypervisorError,
    NotFound,
    StorageError,
    TimedOut,
    Unavailable,
)
from vmdriver.host.confined import netns
from vmdriver.host.lanes import Lanes, Pulse
from vmdriver.hypervisor.glib import begin_worker
from vmdriver.hypervisor.hints import Hints

T = TypeVar("T")
_log = logging.getLogger(__name__)
DEADLINE_S = 15.0
"""For what takes milliseconds, on a host that is busy."""
START_DEADLINE_S = 60.0
_AT_ONCE = 8
_PLACE_S = 5.0
_UNAVAILABLE = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_RPC,
}
# A system error is one of the connection only when these report it; else a file's, or QEMU's.
_CONNECTION_DOMAINS = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_TIMED_OUT = {
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_kept: list[Any] = []
"""Every connection that is not closed, also one that was lost. Whoever drops the last reference has
libvirt free it, callbacks and all, in that thread, while libvirt's event thread may be at it.
"""
_loop_started = threading.Lock()
_loop_thread: threading.Thread | None = None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn libvirt's errors into ours, by its error codes."""
    try:
        yield
    except libvirt.libvirtError as error:
        code, text = error.get_error_code(), error.get_error_message() or str(error)
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            raise NotFound(f"{what}: no such domain", detail=text) from error
        if code in _TIMED_OUT:
            raise TimedOut(f"{what}: {text}") from error
        if code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in _FULL:
            # libvirt's own files have no room (its first number is the errno then; measured, 9.0).
            raise StorageError(
                f"{what}: {text}",
                detail=f"libvirt error {code}",
                reason="DiskFull",
                resolution="free space in the state directory",
            ) from error
        lost = (
            code == libvirt.VIR_ERR_SYSTEM_ERROR
            and error.get_error_domain() in _CONNECTION_DOMAINS
        )
        if code in _UNAVAILABLE or lost:
            raise Unavailable(
                f"{what}: libvirt is not reachable",
                detail=text,
                reason="LibvirtUnavailable",
            ) from error
        raise HypervisorError(
            f"{what}: {text}", detail=f"libvirt error {code}"
        ) from error


def start_event_loop() -> None:
    """libvirt's own loop in a daemon thread, once per process and before the first
    connection.

    Not libvirtaio: it touches asyncio's loop from worker threads (measured).
    """
    global _loop_thread  # noqa: PLW0603 - libvirt allows one implementation per process
    with _loop_started:
        if _loop_thread is not None:
            return
        begin_worker()
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        # Without a timer the loop would block for ever in poll() when there is nothing
        # to watch yet.
        libvirt.virEventAddTimeout(1000, lambda *_: None, None)
        _loop_thread = threading.Thread(
            target=_run_event_loop, name="libvirt-events", daemon=True
        )
        _loop_thread.start()


def _run_event_loop() -> None:
    while True:
        if libvirt.virEventRunDefaultImpl() < 0:
            _log.error(
                "libvirt's event loop failed; changes are noticed by looking only"
            )
            return


class Connection:
    """A libvirt connection that is opened again when it was lost. Every machine's calls run in
    a lane of their own: with a QEMU that does not react they hang (libvirt waits for its monitor
    without end), while looking at it, and at all others, does not (measured, libvirt 9.0).
    """

    def __init__(self, uri: str, lanes: Lanes) -> None:
        self.uri = uri
        self.lanes = lanes
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._connection: Any = None
        self._opening = threading.Lock()
        self._hints: Hints | None = None

    def on_domain_event(self, call: Callable[[str], None]) -> None:
        """Have domain names handed to `call` in this loop's thread. Before the first
        use.
        """
        self._hints = Hints(asyncio.get_running_loop(), call)

    def _open(self) -> Any:
        with self._opening:
            if self._connection is not None and self._connection.isAlive() == 1:
                return self._connection
            start_event_loop()
            connection = libvirt.open(self.uri)
            _kept.append(connection)
            # No keepalive: that closes a connection under calls that wait on it, which ended this
            # process in libvirt's client when a stopped daemon went on (measured, 9.0). Calls have
            # deadlines of their own, and a daemon that is gone closes its socket.
            if self._hints is not None:
                self._subscribe(connection, self._hints)
            self._connection = connection
            return connection

    def _subscribe(self, connection: Any, hints: Hints) -> None:
        def hand_over(_connection: Any, domain: Any, *_rest: Any) -> None:
            # In libvirt's thread: do nothing here but hand the name over.
            hints.add(domain.name())

        for kind in (
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
        ):
            connection.domainEventRegisterAny(None, kind, hand_over, None)

    async def call(
        self,
        what: str,
        function: Callable[[Any], T],
        domain: str = "",
        *,
        deadline_s: float = DEADLINE_S,
        urgent: bool = False,
        pulse: Pulse | None = None,
        namespace: str | None = None,
    ) -> T:
        """Run `function(connection)` in the domain's lane; see Lanes.run. `namespace`: the network
        namespace that it, and a QEMU that it begins, are in. NotFound, TimedOut, Unavailable,
        HypervisorError.
        """

        def work() -> T:
            begun = time.monotonic()
            try:
                with translated(what):
                    # Opened here: what libvirt begins for itself has nothing to do in there. The
                    # thread is this call's alone.
                    connection = self._open()
                    with netns.entered(namespace):
                        return function(connection)
            finally:
                _log.debug("outside: %s took %.4f s", what, time.monotonic() - begun)

        return await self.lanes.run(
            domain, what, work, deadline_s=deadline_s, urgent=urgent, pulse=pulse
        )

    @asynccontextmanager
    async def place(self, domain: str) -> AsyncIterator[None]:
        """A place among the machines that are started at once. Whoever needs it longer than
        usual keeps nobody waiting for it.
        """
        await self.lanes.attend(domain, "wait for a place", self._places.acquire())
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._places.release()

        timer = asyncio.get_running_loop().call_later(_PLACE_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

    def close(self) -> None:
        """Let the connection go; machines stay."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with translated("close"):
                connection.close()
                _kept.remove(connection)
