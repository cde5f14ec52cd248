"""A stand-in for the gateway as a sandbox sees it: HTTP on loopback, as `stand-in-supervisor`
beside this module speaks it.
"""

from __future__ import annotations

import base64
import itertools
import json
import queue
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Completed:
    """A command that ran in a guest."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass
class Session:
    """What one sandbox has said so far."""

    hellos: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    jobs: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    results: dict[int, Completed] = field(default_factory=dict)
    speaker: str = ""
    """The supervisor that was heard last: a snapshot brings an earlier one back."""
    held: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A guest that is suspended or ends takes its connections with it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Gateway:
    """Listens on 127.0.0.1 only; a port of 0 lets the kernel choose."""

    def __init__(
        self, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self._jobs = itertools.count(1)
        self._ended = False
        self._server = _Server((host, port), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def session(self, sandbox_id: str) -> Session:
        """That sandbox's, made when it is asked for first."""
        return self.sessions.setdefault(sandbox_id, Session())

    def wait_hello(
        self, sandbox_id: str, count: int = 1, timeout_s: float = 90
    ) -> dict[str, Any]:
        """Wait until the sandbox's supervisor has called for the `count`-th time."""
        session = self.session(sandbox_id)
        with session.changed:
            if not session.changed.wait_for(
                lambda: len(session.hellos) >= count, timeout_s
            ):
                raise TimeoutError(
                    f"the supervisor of {sandbox_id} did not call within {timeout_s} s"
                )
            return session.hellos[count - 1]

    def wait_exit(self, sandbox_id: str, timeout_s: float = 60) -> int:
        """The status that its main process ended with last. TimeoutError."""
        session = self.session(sandbox_id)
        with session.changed:
            if not session.changed.wait_for(lambda: bool(session.exits), timeout_s):
                raise TimeoutError(
                    f"{sandbox_id} did not report an exit within {timeout_s} s"
                )
            return session.exits[-1]

    def run(self, sandbox_id: str, *command: str, timeout_s: float = 60) -> Completed:
        """Run a command in the guest, as root."""
        session = self.session(sandbox_id)
        with session.changed:
            number = next(self._jobs)
            session.jobs.put({"job": number, "run": list(command)})
            if not session.changed.wait_for(
                lambda: number in session.results, timeout_s
            ):
                raise TimeoutError(
                    f"{command!r} in {sandbox_id} took longer than {timeout_s} s"
                )
            return session.results[number]

    def shell(self, sandbox_id: str, script: str, timeout_s: float = 60) -> str:
        """Run a shell script in the guest; its output. AssertionError if it fails."""
        done = self.run(sandbox_id, "/bin/sh", "-c", script, timeout_s=timeout_s)
        if done.code != 0:
            raise AssertionError(f"{script!r}: {done}")
        return done.stdout.decode()

    def close(self) -> None:
        """Answer nobody any more."""
        self._ended = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next_job(
        self, session: Session, instance: str, peer: socket.socket
    ) -> dict[str, Any]:
        """Wait up to 10 s. A guest that was stopped leaves its question behind: it must not take
        the next one's work.
        """
        session.speaker = instance
        for _ in range(200):
            stale = session.speaker != instance
            if self._ended or stale or not _alive(peer):
                return {}
            try:
                job = session.jobs.get(timeout=0.05)
            except queue.Empty:
                continue
            if session.speaker == instance and _alive(peer):
                return job
            session.jobs.put(job)
        return {}

    def answer(
        self,
        path: str,
        session: Session,
        message: dict[str, Any],
        token: str,
        peer: socket.socket,
    ) -> dict[str, Any]:
        """What that call of a sandbox's is answered."""
        if path == "/hold":
            return self._hold(session, peer)
        if path == "/work":
            return self._next_job(session, message["instance"], peer)
        with session.changed:
            if path == "/hello":
                session.hellos.append(message)
                session.speaker = message["instance"]
                session.tokens.append(token)
            elif path == "/exit":
                session.exits.append(message["code"])
            elif path == "/result":
                out, err = (
                    base64.b64decode(message["stdout"]),
                    base64.b64decode(message["stderr"]),
                )
                session.results[message["job"]] = Completed(message["code"], out, err)
            session.changed.notify_all()
        return {}

    def _hold(self, session: Session, peer: socket.socket) -> dict[str, Any]:
        """Keep the caller waiting until it is gone."""
        session.held.clear()
        while not self._ended and _alive(peer):
            time.sleep(0.01)
        session.held.set()
        return {}

    def held_ends(self, sandbox_id: str, timeout_s: float) -> bool:
        """Whether a caller of /hold is known to be gone within that time."""
        return self.session(sandbox_id).held.wait(timeout_s)

    def _handler(gateway) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler class is `self` below
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                session = gateway.session(self.headers.get("X-Sandbox-Id", ""))
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                answer = gateway.answer(
                    self.path, session, json.loads(body), token, self.connection
                )
                data = json.dumps(answer).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # a guest that was stopped while it waited

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _alive(peer: socket.socket) -> bool:
    """Whether the other end is still there, as far as our kernel knows."""
    if isinstance(peer, ssl.SSLSocket):
        return True
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
