"""A sandbox's life behind a real gateway, step by step. Each step proves what it says."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.interop.stack import Stack, wait
from vmdriver.service import admin_client

BOX, FORK, TWIN = "interop", "interop-fork", "interop-twin"
_GREETING = "a service of the host"
_ASK = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read().decode())"
_POLICY = """\
version: 1
filesystem_policy:
  include_workdir: true
  read_only: [/usr, /lib, /proc, /dev/urandom, /etc, /var/log]
  read_write: [/sandbox, /tmp, /dev/null]
landlock:
  compatibility: best_effort
process:
  run_as_user: sandbox
  run_as_group: sandbox
network_policies:
  host_service:
    name: host_service
    endpoints:
      - host: host.openshell.internal
        port: {port}
        allowed_ips: ["192.168.127.254/32"]
    binaries:
      - path: /usr/bin/python*
"""


@contextlib.contextmanager
def host_service() -> Iterator[int]:
    """HTTP on the host's 127.0.0.1 alone; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = _GREETING.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def expect(what: str, found: object, wanted: object) -> None:
    """RuntimeError if it is something else."""
    if found != wanted:
        raise RuntimeError(f"{what}: {found!r} instead of {wanted!r}")


class Life:
    """One sandbox, its fork and its twin."""

    def __init__(self, stack: Stack, service_port: int) -> None:
        self.stack = stack
        self._service_port = service_port
        self._policy = stack.base / "policy.yaml"
        self._policy.write_text(_POLICY.format(port=service_port))
        self._id = ""
        self._told: list[str] = []

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """In their order."""
        return [
            ("up", self.up),
            ("create", self.create),
            ("exec", self.execute),
            ("upload", self.upload),
            ("host service", self.reach_host),
            ("stop", self.stop),
            ("start", self.start),
            ("suspend", self.suspend),
            ("resume", self.resume),
            ("snapshot", self.snapshot),
            ("restore", self.restore),
            ("fork of snapshot", self.fork),
            ("fork of template", self.twin),
            ("gateway SIGTERM", lambda: self.gateway_ends(signal.SIGTERM)),
            ("gateway SIGKILL", lambda: self.gateway_ends(signal.SIGKILL)),
            ("driver SIGKILL", self.driver_dies),
            ("delete", self.delete),
        ]

    # --- what is used again

    def _create(self, name: str, **driver_config: object) -> None:
        more: list[str] = []
        if driver_config:
            block = json.dumps({self.stack.driver_name: driver_config})
            more = ["--driver-config-json", block]
        where = ("--name", name, "--from", self.stack.image)
        how = ("--policy", str(self._policy), "--detach", "--no-auto-providers")
        self.stack.openshell(
            *("sandbox", "create", *where, *how, *more, "--", "sleep", "infinity")
        )
        self._ready(name)

    def _ready(self, name: str = BOX, timeout_s: float = 90) -> None:
        def ready() -> bool:
            phase = self.stack.phase(name)
            if phase in {"Error", "gone"}:
                raise RuntimeError(f"{name} is {phase}")
            return phase == "Ready"

        wait(f"{name} is Ready", ready, timeout_s)

    def _shell(self, script: str, name: str = BOX) -> str:
        return self.stack.execute(name, "sh", "-c", script).strip()

    def _boot_id(self, name: str = BOX) -> str:
        return self._shell("cat /proc/sys/kernel/random/boot_id", name)

    def _tell(self, reason: str, message: str, warning: bool) -> None:
        self._told.append(reason)
        if warning:
            print(f"    {reason}: {message}", flush=True)

    def _record(self, name: str) -> dict[str, object]:
        path = self.stack.state / "sandboxes" / self.stack.id_of(name) / "record.json"
        found: dict[str, object] = json.loads(path.read_text())
        return found

    # --- the steps

    def up(self) -> None:
        """Gateway and driver, from nothing."""
        self.stack.start_driver()
        self.stack.start_gateway()

    def create(self) -> None:
        """Until the supervisor has its session."""
        self._create(BOX)
        self._id = self.stack.id_of(BOX)

    def execute(self) -> None:
        """As the sandbox's user."""
        expect("id", self._shell("id -un"), "sandbox")

    def upload(self) -> None:
        """A file there and back."""
        local, back = self.stack.base / "upload.txt", self.stack.base / "back"
        local.write_text("there and back\n")
        back.mkdir(exist_ok=True)
        self.stack.openshell(
            *("sandbox", "upload", "--no-git-ignore", BOX, str(local), "/sandbox")
        )
        expect("upload", self._shell("cat /sandbox/upload.txt"), "there and back")
        self.stack.openshell(
            *("sandbox", "download", BOX, "/sandbox/upload.txt", str(back))
        )
        expect("download", (back / "upload.txt").read_text(), local.read_text())

    def reach_host(self) -> None:
        """A service of the host's loopback, under the address that a policy names."""
        url = f"http://host.openshell.internal:{self._service_port}/"
        answer = self.stack.execute(BOX, "python3", "-c", _ASK, url)
        expect("host.openshell.internal", answer.strip(), _GREETING)

    def stop(self) -> None:
        """Down, for the gateway and the driver."""
        self.stack.openshell("sandbox", "stop", BOX)
        expect("phase", self.stack.phase(BOX), "Stopped")
        expect("record", self._record(BOX)["phase"], "stopped")

    def start(self) -> None:
        """On the same disk."""
        self.stack.openshell("sandbox", "start", BOX)
        self._ready()
        expect("file", self._shell("cat /sandbox/upload.txt"), "there and back")

    def suspend(self) -> None:
        """An operator's command; the gateway sees it."""
        self._shell("cp /proc/sys/kernel/random/boot_id /tmp/in-memory")
        admin_client.suspend(self.stack.admin_socket, self._id, self._tell)
        wait("Stopped", lambda: self.stack.phase(BOX) == "Stopped", 10)

    def resume(self) -> None:
        """And then the user's start, which must not wait for the gateway's next sweep."""
        admin_client.resume(self.stack.admin_socket, self._id, False, self._tell)
        expect("the operator was told", self._told[-1], "GatewaySaysStopped")
        expect("phase", self.stack.phase(BOX), "Stopped")
        self.stack.openshell("sandbox", "start", BOX)
        self._ready(timeout_s=15)
        expect("memory", self._shell("cat /tmp/in-memory"), self._boot_id())

    def snapshot(self) -> None:
        """With memory."""
        path = self.stack.admin_socket
        admin_client.create_snapshot(path, self._id, "one", False, self._tell)

    def restore(self) -> None:
        """What came after it is gone, and the gateway never took it for stopped."""
        self._shell("touch /sandbox/after")
        path = self.stack.admin_socket
        admin_client.restore_snapshot(path, self._id, "one", self._tell)
        self._ready()
        found = self._shell("ls /sandbox")
        expect("files", found, "upload.txt")
        expect("memory", self._shell("cat /tmp/in-memory"), self._boot_id())

    def fork(self) -> None:
        """A new sandbox from the snapshot's disk."""
        self._create(FORK, from_snapshot=f"{self._id}/one")
        found = self._shell("cat /sandbox/upload.txt", FORK)
        expect("file", found, "there and back")
        self._delete(FORK)

    def twin(self) -> None:
        """A new sandbox that goes on from a template's memory."""
        path = self.stack.admin_socket
        wait("a template", lambda: admin_client.list_templates(path), 120)
        self._create(TWIN)
        plan = self._record(TWIN)["plan"]
        assert isinstance(plan, dict)
        if not plan["template"]:
            raise RuntimeError("it was booted, although there was a template")
        expect("id", self._shell("id -un", TWIN), "sandbox")
        self._delete(TWIN)

    def gateway_ends(self, number: int) -> None:
        """And comes back; the machine goes on."""
        boot_id = self._boot_id()
        self.stack.end_gateway(number)
        self.stack.start_gateway()
        self._goes_on(boot_id)

    def driver_dies(self) -> None:
        """And comes back: by its operator, or with its gateway."""
        boot_id = self._boot_id()
        self.stack.kill_driver()
        if self.stack.launched:
            self.stack.end_gateway(signal.SIGTERM)
            self.stack.start_gateway()
        self.stack.start_driver()
        self._goes_on(boot_id)
        wait("the driver answers", self._driver_answers, 30)

    def _driver_answers(self) -> bool:
        try:
            admin_client.list_templates(self.stack.admin_socket)
        except Exception:
            return False
        return True

    def _goes_on(self, boot_id: str) -> None:
        """The same machine answers: a gateway that comes back says Ready before its supervisor
        has come back to it.
        """
        found: list[str] = []

        def answers() -> bool:
            try:
                found.append(self._boot_id())
            except RuntimeError:
                return False
            return True

        wait("the sandbox answers", answers, 60)
        expect("boot id", found[0], boot_id)
        self._ready()

    def delete(self) -> None:
        """Everything."""
        self._delete(BOX)

    def _delete(self, name: str) -> None:
        directory = self.stack.state / "sandboxes" / self.stack.id_of(name)
        self.stack.openshell("sandbox", "delete", name)
        wait(f"{name} is gone", lambda: self.stack.phase(name) == "gone", 40)
        expect("directory", Path(directory).exists(), False)
