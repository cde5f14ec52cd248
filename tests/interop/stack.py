"""A gateway, its command line and our driver, as an operator would put them together. Facts about
them: contract §2.1, §2.16.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.ports import free_port
from tests.fakes.serve import BIN, SERVE, WORK
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

PATIENCE = 1.0 if os.access("/dev/kvm", os.R_OK | os.W_OK) else 3.0
"""Emulated machines are slow: every time-out is that much longer."""
_NAME = "interop"


@dataclass(frozen=True)
class Programs:
    """What whoever runs this brings."""

    gateway: Path
    cli: Path
    supervisor: Path


def wait(what: str, reached: Callable[[], object], timeout_s: float) -> None:
    """Look until it is so. TimeoutError."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s * PATIENCE:g} s")
        time.sleep(0.1)


class Stack:
    """One gateway with one driver. `launched`: the gateway starts the driver, with TLS."""

    def __init__(
        self, programs: Programs, base: Path, registry: str, *, launched: bool
    ) -> None:
        self.programs = programs
        self.launched = launched
        self.base = base
        self.image = f"{registry}/demo:latest"
        letters = re.sub(r"[^a-z0-9]", "", base.name.rpartition("-")[2].lower())
        self.instance = f"interop-{letters}"
        self.state = base / "state"
        self.driver_name = "vm" if launched else "vmdriver"
        self._registry = registry
        self._port = free_port()
        self._gateway: subprocess.Popen[bytes] | None = None
        self._driver: subprocess.Popen[bytes] | None = None
        self._prepare()

    # --- configuration

    @property
    def url(self) -> str:
        """The gateway, as this host reaches it."""
        return f"{'https' if self.launched else 'http'}://127.0.0.1:{self._port}"

    def _prepare(self) -> None:
        # A stock gateway gives a launched driver's directory the mode 0700.
        self.state.mkdir(mode=0o700 if self.launched else 0o755)
        (self.state / "boot").symlink_to(WORK / "boot")
        (self.base / "libexec").mkdir()
        driver = self.base / "libexec" / "openshell-driver-vm"
        driver.symlink_to(BIN / "openshell-driver-vm")
        self._run("generate-certs", program=self.programs.gateway, more=self._certs())
        self._make_jwt()
        (self.base / "gateway.toml").write_text(self._gateway_toml())
        (self.base / "driver.toml").write_text(self._driver_toml())
        self._register()

    def _certs(self) -> list[str]:
        san = ["--server-san", "host.openshell.internal"]
        return ["--output-dir", str(self.base / "pki"), *san]

    def _make_jwt(self) -> None:
        """An Ed25519 key, as the gateway signs supervisors' tokens with."""
        folder = self.base / "jwt"
        folder.mkdir(mode=0o700)
        key = str(folder / "signing.pem")
        make = ["openssl", "genpkey", "-algorithm", "Ed25519", "-out", key]
        subprocess.run(make, check=True, capture_output=True)
        public = ["openssl", "pkey", "-in", key, "-pubout"]
        public += ["-out", str(folder / "public.pem")]
        subprocess.run(public, check=True, capture_output=True)
        (folder / "kid").write_text("interop\n")

    def _gateway_toml(self) -> str:
        jwt, pki = self.base / "jwt", self.base / "pki"
        lines = ["[openshell]", "version = 1", "[openshell.gateway]"]
        lines += [f'bind_address = "127.0.0.1:{self._port}"']
        if self.launched:
            lines += ['compute_drivers = ["vm"]', "[openshell.gateway.tls]"]
            lines += [f'cert_path = "{pki}/server/tls.crt"']
            lines += [f'key_path = "{pki}/server/tls.key"']
            lines += [f'client_ca_path = "{pki}/ca.crt"']
            lines += ["[openshell.gateway.mtls_auth]", "enabled = true"]
        else:
            lines += ["[openshell.gateway.auth]", "allow_unauthenticated_users = true"]
        lines += ["[openshell.gateway.gateway_jwt]"]
        lines += [f'signing_key_path = "{jwt}/signing.pem"']
        lines += [f'public_key_path = "{jwt}/public.pem"']
        lines += [f'kid_path = "{jwt}/kid"', f'gateway_id = "{_NAME}"', "ttl_secs = 0"]
        if self.launched:
            lines += ["[openshell.drivers.vm]", "vcpus = 1", "mem_mib = 512"]
            inside = f"https://host.openshell.internal:{self._port}"
            lines += [f'grpc_endpoint = "{inside}"', "overlay_disk_mib = 1024"]
            lines += [f'default_image = "{self.image}"']
            lines += [f'driver_dir = "{self.base}/libexec"']
            lines += [f'state_dir = "{self.state}"', f'guest_tls_ca = "{pki}/ca.crt"']
            lines += [f'guest_tls_cert = "{pki}/client/tls.crt"']
            lines += [f'guest_tls_key = "{pki}/client/tls.key"']
        return "\n".join(lines) + "\n"

    def _driver_toml(self) -> str:
        lines = [f'instance = "{self.instance}"', 'host_access = "all"']
        lines += [f'insecure_registries = ["{self._registry}"]']
        lines += [f'supervisor_path = "{self.programs.supervisor}"']
        lines += ["boot_timeout_s = 300"]
        if not self.launched:
            lines += [f'state_dir = "{self.state}"', f'bind_socket = "{self.socket}"']
            lines += [f'openshell_endpoint = "{self.url}"', "overlay_disk_mib = 1024"]
            lines += ["vcpus = 1", "mem_mib = 512"]
        return "\n".join(lines) + "\n"

    def _register(self) -> None:
        """What `openshell gateway add` writes, without its questions."""
        gateways = self.base / "xdg" / "config" / "openshell" / "gateways" / _NAME
        gateways.mkdir(parents=True)
        known: dict[str, Any] = {"name": _NAME, "gateway_endpoint": self.url}
        known |= {"is_remote": False, "gateway_port": self._port}
        if self.launched:
            pki, mtls = self.base / "pki", gateways / "mtls"
            mtls.mkdir()
            for source in (pki / "ca.crt", *(pki / "client").glob("tls.*")):
                shutil.copy(source, mtls)
        else:
            known["auth_mode"] = "plaintext"
        (gateways / "metadata.json").write_text(json.dumps(known))
        (gateways.parent.parent / "active_gateway").write_text(_NAME)

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of this user's own configuration."""
        own = {
            "HOME": str(self.base),
            "VMDRIVER_CONFIG": str(self.base / "driver.toml"),
        }
        xdg = {kind: self.base / "xdg" / kind.lower() for kind in _XDG}
        own |= {f"XDG_{kind}_HOME": str(path) for kind, path in xdg.items()}
        own |= {"OPENSHELL_GATEWAY_ENDPOINT": self.url, "NO_COLOR": "1"}
        own |= {"OPENSHELL_TELEMETRY_ENABLED": "false"}
        patience = str(int(300 * PATIENCE))
        own |= {"OPENSHELL_PROVISION_TIMEOUT": patience}
        own |= {"OPENSHELL_LIFECYCLE_TIMEOUT": patience}
        return {"PATH": os.environ["PATH"], **own}

    @property
    def socket(self) -> Path:
        """Of an operated driver."""
        return self.base / "run" / "driver.sock"

    @property
    def admin_socket(self) -> Path:
        """Of the driver, for an operator's commands."""
        return self.state / "run" / "admin.sock"

    # --- processes

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.base / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment
            )

    def start_driver(self) -> None:
        """Of the operated way."""
        if not self.launched:
            self._driver = self._spawn("driver", SERVE)

    def start_gateway(self) -> None:
        """Returns when a user of it is answered."""
        command = [str(self.programs.gateway)]
        command += ["--config", str(self.base / "gateway.toml")]
        command += ["--db-url", f"sqlite:{self.base}/gateway.db?mode=rwc"]
        if not self.launched:
            command += ["--disable-tls", "--drivers", self.driver_name]
            command += ["--compute-driver-socket", str(self.socket)]
        self._gateway = self._spawn("gateway", command)
        wait("the gateway answers", self._connected, 60)

    def _connected(self) -> bool:
        assert self._gateway is not None
        if self._gateway.poll() is not None:
            raise RuntimeError(f"the gateway ended: {self.tail('gateway')}")
        done = self._run("status", "--output", "json", check=False)
        return '"connected"' in done.stdout.replace(" ", "")

    def end_gateway(self, number: int) -> None:
        """Of a launched driver: returns when that has ended too."""
        assert self._gateway is not None
        pids = self.driver_pids() if self.launched else []
        self._gateway.send_signal(number)
        self._gateway.wait(60 * PATIENCE)
        wait("the launched driver ends with its gateway", lambda: not _alive(pids), 10)

    def kill_driver(self) -> None:
        """SIGKILL; a launching gateway is left without one."""
        pids = self.driver_pids()
        if not pids:
            raise RuntimeError("there is no driver process")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        if self._driver is not None:
            self._driver.wait()
        wait("the driver is dead", lambda: not _alive(pids), 10)

    def driver_pids(self) -> list[int]:
        """The operated driver, or the launching gateway's child."""
        parent = self._gateway if self.launched else self._driver
        if parent is None or parent.poll() is not None:
            return []
        if not self.launched:
            return [parent.pid]
        listed = Path(f"/proc/{parent.pid}/task").glob("*/children")
        return [int(pid) for path in listed for pid in path.read_text().split()]

    def close(self) -> None:
        """End what runs. Machines were deleted, or are what the leftovers show."""
        for process in (self._gateway, self._driver):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(30 * PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def give_back(self) -> None:
        """After a way that failed: a driver of nobody's deletes what is there."""
        socket = self.base / "run" / "last.sock"
        flags = ["--state-dir", str(self.state), "--bind-socket", str(socket)]
        flags += ["--openshell-endpoint", "http://127.0.0.1:1"]
        driver = self._spawn("last-driver", [*SERVE, *flags])
        try:
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                stub = pb_grpc.ComputeDriverStub(channel)
                limit_s = 60 * PATIENCE
                request = pb.ListSandboxesRequest()
                listed = stub.ListSandboxes(
                    request, wait_for_ready=True, timeout=limit_s
                )
                for sandbox in listed.sandboxes:
                    delete = pb.DeleteSandboxRequest(sandbox_id=sandbox.id)
                    stub.DeleteSandbox(delete, timeout=limit_s)
        except grpc.RpcError as error:
            print(f"what is left could not be deleted: {error}", flush=True)
        finally:
            driver.terminate()
            driver.wait(30 * PATIENCE)

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a log."""
        path = self.base / f"{name}.log"
        if not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    # --- commands

    def _run(
        self,
        *arguments: str,
        program: Path | None = None,
        more: list[str] | None = None,
        check: bool = True,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        command = [str(program or self.programs.cli), *arguments, *(more or [])]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            timeout=timeout_s * PATIENCE,
        )
        if check and done.returncode:
            said = _COLOUR.sub("", done.stdout + done.stderr).strip()[-1500:]
            raise RuntimeError(f"{' '.join(command[1:4])}: {done.returncode}: {said}")
        return done

    def openshell(self, *arguments: str) -> str:
        """The command line's standard output. RuntimeError with what it said."""
        return self._run(*arguments).stdout

    def phase(self, name: str) -> str:
        """As the gateway says it."""
        found = json.loads(self.openshell("sandbox", "list", "--output", "json"))
        sandboxes = found if isinstance(found, list) else found.get("sandboxes", [])
        return next((str(b["phase"]) for b in sandboxes if b["name"] == name), "gone")

    def id_of(self, name: str) -> str:
        """The sandbox's id, which the driver's own commands take."""
        found = json.loads(self.openshell("sandbox", "get", name, "--output", "json"))
        return str(found["id"])

    def execute(self, name: str, *command: str) -> str:
        """In the sandbox."""
        where = ("sandbox", "exec", "--name", name, "--no-tty", "--timeout", "120")
        return self.openshell(*where, "--", *command)


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_XDG = ("CONFIG", "DATA", "STATE", "CACHE")


def _alive(pids: list[int]) -> list[int]:
    """Those that have not ended; one that nobody has waited for has."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in {"Z", "X"}:
            found.append(pid)
    return found
