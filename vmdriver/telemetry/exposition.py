"""Serves metrics to Prometheus: on a Unix socket, or on a port of the loopback."""

from __future__ import annotations

import copy
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, MetricsHandler

from vmdriver.telemetry.listen import Listen

_log = logging.getLogger(__name__)
_MOST_AT_ONCE = 16
"""Each has a thread and a descriptor of ours, and every user of the host may ask at a port."""


class _Server(ThreadingHTTPServer):
    """More than so many are not heard; nobody of these is waited for when it ends."""

    daemon_threads = True

    def __init__(self, address: Any, handler: Any) -> None:
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread for it: it was not begun
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as it is called
        """Whoever asked has gone, most likely: nothing that the log need tell."""
        gone = isinstance(sys.exception(), OSError)
        level = logging.DEBUG if gone else logging.ERROR
        _log.log(level, "metrics could not be handed over", exc_info=True)


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        # HTTPServer's looks up the host's name. The mode is that of the socket before it has a name
        # (unix(7)): whatever has that name afterwards is not touched.
        os.fchmod(self.socket.fileno(), 0o600)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> Any:
        request, _ = self.socket.accept()
        return request, ("unix", 0)  # a handler writes down from where it was asked


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _OneAtATime:
    """A registry that is collected by one thread at a time: OpenTelemetry's collector would hand
    two of them the same samples, some twice.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry, self._collecting = registry, threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """All there is."""
        with self._collecting:
            found = list(self._registry.collect())
        return iter(found)

    def restricted_registry(self, names: list[str]) -> _Named:
        """Only what has one of these names: `?name[]=`."""
        return _Named(self, set(names))


class _Named:
    def __init__(self, every: _OneAtATime, names: set[str]) -> None:
        self._every, self._names = every, names

    def collect(self) -> Iterator[Metric]:
        """What has one of the names."""
        for metric in self._every.collect():
            named = copy.copy(metric)  # some are kept by those who made them
            named.samples = [s for s in metric.samples if s.name in self._names]
            if named.samples:
                yield named


def _make_way(path: Path) -> None:
    """For a socket, where an earlier driver's may lie. OSError where something else does, or
    somebody answers.
    """
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(1.0)
            with suppress(ConnectionRefusedError, FileNotFoundError):
                caller.connect(str(path))
                raise OSError(errno.EADDRINUSE, "another program answers there", path)
        path.unlink(missing_ok=True)
    elif path.exists():
        raise FileExistsError(
            errno.EEXIST, "something that is no socket is there", path
        )


class Exposition:
    """One server in a thread. OSError where it cannot listen. `patience_s`: with who says
    nothing, or takes nothing.
    """

    def __init__(
        self, listen: Listen, registry: CollectorRegistry, *, patience_s: float = 10.0
    ) -> None:
        self._path, self._own = listen.path, (0, 0)
        every, patience = _OneAtATime(registry), {"timeout": patience_s}
        handler = type("metrics", (MetricsHandler.factory(every),), patience)
        self._server: _Server
        if listen.path is not None:
            _make_way(listen.path)
            self._server = _UnixServer(str(listen.path), handler)
            self._own = _identity(listen.path)
        else:
            kind = _SixServer if ":" in listen.host else _Server
            self._server = kind((listen.host, listen.port), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End it; who is being answered is left alone."""
        self._server.shutdown()
        self._server.server_close()
        if self._path is not None and _identity(self._path) == self._own:
            self._path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.lstat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
