"""Stands between a client and a registry, and spoils what comes back."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit


class Faults:
    """What the proxy does to answers for blobs. `seen`: (method, path) of every request."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.truncate_after = 0
        """Bytes of a blob after which the connection is cut; 0: never."""
        self.fail_with = 0
        """Status of every answer; 0: the registry's own."""
        self.times = 0
        """How many answers are spoiled."""
        self.bytes_per_s = 0
        """0: as fast as it goes."""

    def blobs(self) -> list[str]:
        return [
            path for method, path in self.seen if method == "GET" and "/blobs/" in path
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    registry: str

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        faults = self.faults
        faults.seen.append((self.command, urlsplit(self.path).path))
        is_blob = "/blobs/sha256" in self.path
        spoil = faults.times > 0 and (is_blob or bool(faults.fail_with))
        if spoil:
            faults.times -= 1
        if spoil and faults.fail_with:
            self.send_response(faults.fail_with)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self._forward()
        if self.command == "GET":
            self._send(body, cut=spoil)

    def _forward(self) -> bytes:
        connection = http.client.HTTPConnection(self.registry)
        connection.putrequest(self.command, self.path, skip_host=True)
        connection.putheader("Host", self.registry)
        for name, value in self.headers.items():  # some come several times
            if name.lower() != "host":
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.end_headers()
        connection.close()
        return body

    def _send(self, body: bytes, *, cut: bool) -> None:
        if cut:
            self.wfile.write(body[: self.faults.truncate_after])
            self.close_connection = True
            return
        speed = self.faults.bytes_per_s
        step = speed // 20 if speed else len(body) or 1
        with contextlib.suppress(OSError):
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                if speed:
                    time.sleep(0.05)


@contextlib.contextmanager
def proxied(registry: str) -> Iterator[tuple[str, Faults]]:
    """Yields the proxy's host:port."""
    faults = Faults()
    handler = type("Handler", (_Handler,), {"faults": faults, "registry": registry})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
