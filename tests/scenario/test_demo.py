"""The demo, when its driver does not live."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import grpc
import pytest

from tests.fakes import serve
from tests.fakes.gateway import Gateway
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

DIES = """
import sys, time
print("a first line", flush=True)
time.sleep(0.5)
sys.exit("no space left, says the driver")
"""


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/demo.py, with a driver that dies after half a second."""
    monkeypatch.setattr(serve, "SERVE", [sys.executable, "-c", DIES])
    place = serve.ROOT / "scripts" / "demo.py"
    found = importlib.util.spec_from_file_location("demo", place)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.mark.parametrize("while_it", ["waits for an answer", "waits for an event"])
def test_a_driver_that_dies_is_noticed_at_once_and_its_last_lines_are_shown(
    while_it: str, demo: ModuleType, gateway: Gateway, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    begun = time.monotonic()
    with (
        pytest.raises(demo.DriverDied, match=r"status 1(.|\n)*no space left") as died,
        demo.driver(state, "127.0.0.1:1", gateway) as socket,
    ):
        if while_it == "waits for an event":
            threading.Event().wait(25)
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            stub = pb_grpc.ComputeDriverStub(channel)
            demo.life(stub, gateway, "image", state / "admin.sock")
    assert "a first line" in str(died.value)
    assert time.monotonic() - begun < 20, "no time-out was waited for"


def test_a_driver_that_is_ended_by_the_demo_has_not_died(
    demo: ModuleType,
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        serve, "SERVE", [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    with demo.driver(tmp_path / "state", "127.0.0.1:1", gateway):
        pass
