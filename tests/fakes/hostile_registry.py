"""A registry that sends what it likes: an HTTP server on loopback, told what to answer for each path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vmdriver.host import facts

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
Answer = Callable[[BaseHTTPRequestHandler], None]


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class HostileRegistry:
    """`answers`: by path without /v2/; `asked`: each path with the credentials that it was shown."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str]] = []
        self.address = ""
        self.poured = 0
        """Bytes that were taken of blobs without an end."""

    def says(
        self, path: str, content: bytes, kind: str = "application/octet-stream"
    ) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.send_header("Content-Type", kind)
            request.send_header("Content-Length", str(len(content)))
            request.send_header("Docker-Content-Digest", digest(content))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)

        self.answers[path] = answer

    def redirects(self, path: str, to: str) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(307)
            request.send_header("Location", to)
            request.send_header("Content-Length", "0")
            request.end_headers()

        self.answers[path] = answer

    def pours(self, path: str, most: int) -> None:
        """A blob that goes on and on: bytes without an end, up to `most`."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(most // 2**20):
                    request.wfile.write(bytes(2**20))
                    self.poured += 2**20

        self.answers[path] = answer

    def image(
        self, name: str, layers: list[dict[str, Any]], config: bytes = b""
    ) -> str:
        """A manifest with these descriptors of layers, for tag 1; its digest."""
        config = (
            config
            or json.dumps(
                {"architecture": facts.oci_architecture(), "os": "linux", "config": {}}
            ).encode()
        )
        described = {
            "mediaType": CONFIG,
            "digest": digest(config),
            "size": len(config),
        }
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described,
                "layers": layers,
            }
        ).encode()
        self.says(f"{name}/blobs/{digest(config)}", config)
        for tag in ("1", digest(manifest)):
            self.says(f"{name}/manifests/{tag}", manifest, MANIFEST)
        return digest(manifest)


@contextlib.contextmanager
def hostile_registry() -> Iterator[HostileRegistry]:
    """One, until the end of the block."""
    found = HostileRegistry()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = self.path.removeprefix("/v2/")
            found.asked.append((self.path, self.headers.get("Authorization", "")))
            answer = found.answers.get(path)
            if answer is not None:
                answer(self)
                return
            self.send_response(404 if path else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = _answer  # noqa: N815 - the base class calls them so

        def log_message(self, *_words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
