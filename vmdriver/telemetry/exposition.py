"""Serves metrics to Prometheus: on a Unix socket, or on a port of the loopback."""

from __future__ import annotations

import errno
import socket
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from vmdriver.telemetry.listen import Listen


class _UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        # HTTPServer's looks up the host's name.
        self.socket.bind(self.server_address)
        Path(str(self.server_address)).chmod(0o600)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> Any:
        request, _ = self.socket.accept()
        return request, ("unix", 0)  # a handler writes down from where it was asked


class _SixServer(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _make_way(path: Path) -> None:
    """For a socket, where an earlier driver's may lie. OSError where something else does."""
    if path.is_socket():
        path.unlink()
    elif path.exists():
        raise FileExistsError(
            errno.EEXIST, "something that is no socket is there", path
        )


class Exposition:
    """One server in a thread. OSError where it cannot listen."""

    def __init__(self, listen: Listen, registry: CollectorRegistry) -> None:
        self._path = listen.path
        handler = MetricsHandler.factory(registry)
        self._server: ThreadingHTTPServer
        if listen.path is not None:
            _make_way(listen.path)
            self._server = _UnixServer(str(listen.path), handler)  # type: ignore[arg-type]
        else:
            kind = _SixServer if ":" in listen.host else ThreadingHTTPServer
            self._server = kind((listen.host, listen.port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End it; who is being answered is left alone."""
        self._server.shutdown()
        self._server.server_close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
