"""The extensions that we ship, in front of a driver that is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.composed import composed, config, until
from tests.fakes.eager import EAGER
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.errors import ConfigError
from vmdriver.extension import Extension, LifecycleExtension
from vmdriver.extensions.loader import load_extensions

ROOT = Path(__file__).resolve().parents[2]


def loaded(
    base: ProcessDriver, tmp_path: Path, **tables: dict[str, Any]
) -> tuple[Any, list[Extension]]:
    """Settings and extensions, by the names that the operator writes."""
    named = {name.replace("_", "-"): table for name, table in tables.items()}
    settings = config(
        base.socket,
        tmp_path / "c" / "c.sock",
        tmp_path / "s",
        extensions=list(named),
        extension=named,
    )
    return settings, load_extensions(list(named), Extension)  # type: ignore[type-abstract]


def create(message: pb.DriverSandbox) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox=message)


async def test_labels_and_environment_follow_the_workspace(
    base: ProcessDriver, tmp_path: Path
) -> None:
    stamp = {"labels": {"pool": "large"}, "environment": {"REGION": "north", "A": "b"}}
    tables = {"workspaces": {"w": stamp}, "default": {"labels": {"pool": "shared"}}}
    settings, extensions = loaded(base, tmp_path, labels_and_placement=tables)
    async with composed(settings, extensions) as (stub, _):
        await stub.CreateSandbox(create(sandbox("s1", environment={"A": "mine"})))
        other = sandbox("s2")
        other.workspace = "elsewhere"
        await stub.CreateSandbox(create(other))
    first, second = (r.sandbox.spec for m, r in base.seen if m == "CreateSandbox")
    assert dict(first.template.labels) == {"pool": "large"}
    assert dict(first.environment) == {"REGION": "north", "A": "mine"}
    assert dict(second.template.labels) == {"pool": "shared"}


async def test_the_audit_log_has_a_line_for_every_call(
    base: ProcessDriver, tmp_path: Path
) -> None:
    path = tmp_path / "log" / "audit.jsonl"
    settings, extensions = loaded(
        base, tmp_path, audit_log={"path": str(path)}, labels_and_placement={}
    )
    async with composed(settings, extensions) as (stub, composition):
        await stub.CreateSandbox(create(sandbox()))
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await until(lambda: not composition.registry.all())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["actor"], line["phase"], line["outcome"]) for line in lines] == [
        ("labels-and-placement", "prepare_plan", "ok"),
        ("audit-log", "after_create", "ok"),
        ("audit-log", "after_delete", "ok"),
    ]
    assert {line["workspace"] for line in lines} == {"w"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_workspace_has_its_quota(base: ProcessDriver, tmp_path: Path) -> None:
    quota = {
        "default": {"sandboxes": 2, "memory_mib": 3000, "unnamed_mib": 1000},
        "workspaces": {"free": {}},
    }
    settings, extensions = loaded(base, tmp_path, workspace_quota=quota)

    def sized(sandbox_id: str, limit: str, workspace: str = "w") -> pb.DriverSandbox:
        resources = pb.DriverResourceRequirements(memory_limit=limit)
        template = pb.DriverSandboxTemplate(image="i", resources=resources)
        message = sandbox(sandbox_id, template=template)
        message.workspace = workspace
        return message

    async def refused(stub: Any, message: pb.DriverSandbox, text: str) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateSandbox(create(message))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text in str(caught.value.details())

    async with composed(settings, extensions) as (stub, composition):
        await stub.CreateSandbox(create(sandbox("s1")))
        await refused(stub, sized("s2", "2001Mi"), "1000 MiB are used")
        await stub.CreateSandbox(create(sized("s2", "2000Mi")))
        await refused(stub, sized("s3", "1Mi"), "'w' may have 2 sandboxes")
        for number in range(3):
            await stub.CreateSandbox(create(sized(f"f{number}", "9Gi", "free")))
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await until(lambda: not composition.registry.get("s1"))
        await stub.CreateSandbox(create(sandbox("s1")))
        requests = [create(sandbox(f"t{n}")) for n in range(4)]
        for message in requests:
            message.sandbox.workspace = "burst"
        results = await asyncio.gather(
            *(stub.CreateSandbox(r) for r in requests), return_exceptions=True
        )
        assert sum(not isinstance(r, BaseException) for r in results) == 2


async def test_devices_are_claimed_by_one_at_a_time(
    base: ProcessDriver, tmp_path: Path
) -> None:
    claims = tmp_path / "claims"
    table = {"directory": str(claims), "devices": ["gpu/0", "gpu/1"]}
    settings, extensions = loaded(base, tmp_path, gpu_claim=table)
    label = {"openshell.io/extension.gpu-claim": "enabled"}
    template = pb.DriverSandboxTemplate(image="i", labels=label)
    claims.mkdir()
    (claims / "gpu_0").write_text("another program")
    async with composed(settings, extensions) as (stub, composition):
        await stub.CreateSandbox(create(sandbox("s1", template=template)))
        spec = base.asked().sandbox.spec
        assert spec.environment["GPU_CLAIM"] == "gpu/1"
        assert spec.template.labels["gpu-claim"] == "gpu/1"
        assert (claims / "gpu_1").read_text() == "s1"
        with pytest.raises(grpc.aio.AioRpcError, match="are claimed"):
            await stub.CreateSandbox(create(sandbox("s2", template=template)))
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await until(lambda: not composition.registry.all())
    assert [path.name for path in claims.iterdir()] == ["gpu_0"]


# --- addresses


class AddressService:
    """Three addresses; whoever asks again gets the same."""

    def __init__(self) -> None:
        self.claims: dict[str, str] = {}
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                service.asked.append(f"PUT {self.path}")
                if self.path not in service.claims and len(service.claims) == 3:
                    self._say(409, {})
                    return
                address = f"192.0.2.{len(service.claims) + 1}"
                self._say(
                    200, {"address": service.claims.setdefault(self.path, address)}
                )

            def do_DELETE(self) -> None:
                service.asked.append(f"DELETE {self.path}")
                found = service.claims.pop(self.path, None)
                self._say(404 if found is None else 200, {})

            def _say(self, status: int, body: dict[str, str]) -> None:
                data = json.dumps(body).encode()
                with contextlib.suppress(OSError):  # whoever asked may have been killed
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def addresses() -> Iterator[AddressService]:
    service = AddressService()
    yield service
    service.close()


def claiming(sandbox_id: str) -> pb.DriverSandbox:
    prefix = "openshell.io/extension.external-address"
    labels = {prefix: "enabled", f"{prefix}.pool": "edge"}
    return sandbox(
        sandbox_id, template=pb.DriverSandboxTemplate(image="i", labels=labels)
    )


async def test_an_address_is_claimed_told_and_given_back(
    base: ProcessDriver, tmp_path: Path, addresses: AddressService
) -> None:
    settings, extensions = loaded(
        base, tmp_path, external_address={"url": addresses.url}
    )
    async with composed(settings, extensions) as (stub, composition):
        await stub.CreateSandbox(create(sandbox("plain")))
        assert addresses.claims == {}
        for number in range(3):
            await stub.CreateSandbox(create(claiming(f"s{number}")))
        spec = base.asked().sandbox.spec
        assert spec.environment["EXTERNAL_ADDRESS"] == "192.0.2.3"
        assert spec.template.labels["external-address"] == "192.0.2.3"
        assert set(addresses.claims) == {f"/pools/edge/claims/s{n}" for n in range(3)}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateSandbox(create(claiming("s3")))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "'edge'" in str(caught.value.details())
        for number in range(3):
            await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=f"s{number}"))
        await until(lambda: not composition.registry.all())
    assert addresses.claims == {}


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4])
async def test_killed_around_each_question_no_address_is_lost(
    base: ProcessDriver, tmp_path: Path, addresses: AddressService, kill_at: int
) -> None:
    socket, state = tmp_path / "c" / "c.sock", tmp_path / "s"
    program = [sys.executable, "-m", "tests.fakes.composed", base.socket, socket, state]

    async def life(process: subprocess.Popen[bytes]) -> None:
        path = f"unix:{socket}"
        async with grpc.aio.insecure_channel(path, options=EAGER) as channel:
            stub: Any = pb_grpc.ComputeDriverStub(channel)
            request, wait = create(sandbox()), {"wait_for_ready": True, "timeout": 20}
            deadline = time.monotonic() + 20
            while True:
                try:
                    await stub.CreateSandbox(request, **wait)
                    break
                except grpc.aio.AioRpcError as error:
                    given_back = "is being given back; try again" in str(
                        error.details()
                    )
                    if not given_back or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.02)  # its files go a moment before it does
            await stub.DeleteSandbox(
                pb.DeleteSandboxRequest(sandbox_id="s1"), timeout=20
            )

    first = subprocess.Popen([*program, str(kill_at), addresses.url], cwd=ROOT)
    with contextlib.suppress(grpc.aio.AioRpcError):
        await life(first)
    assert await asyncio.to_thread(first.wait, 20) == -signal.SIGKILL
    second = subprocess.Popen([*program, "0", addresses.url], cwd=ROOT)
    try:
        deadline = time.monotonic() + 20
        while addresses.claims or list((state / "sandboxes").iterdir()):
            assert time.monotonic() < deadline, addresses.asked
            await asyncio.sleep(0.05)
        await life(second)  # and the same id again
        while addresses.claims:
            assert time.monotonic() < deadline, addresses.asked
            await asyncio.sleep(0.05)
    finally:
        second.terminate()
        await asyncio.to_thread(second.wait, 10)


def test_names_and_tables_are_checked_before_anything_is_served(
    base: ProcessDriver, tmp_path: Path
) -> None:
    from vmdriver.compose.app import Composition

    with pytest.raises(ConfigError, match="not installed"):
        load_extensions(["no-such"], Extension)  # type: ignore[type-abstract]
    with pytest.raises(ConfigError, match="not a LifecycleExtension"):
        load_extensions(["audit-log"], LifecycleExtension)
    with pytest.raises(ConfigError, match="for another driver"):
        load_extensions(["operator-drop-ins"], Extension)  # type: ignore[type-abstract]
    settings, extensions = loaded(
        base, tmp_path, external_address={"url": "http://203.0.113.9"}
    )
    with pytest.raises(ConfigError, match=r"extension\.external-address\] url"):
        Composition(settings, extensions)
