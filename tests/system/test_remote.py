"""A driver that is served to other hosts, with a real machine, and the commands of both ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.authority import Authority
from tests.fakes.eager import EAGER
from tests.fakes.ports import free_port
from tests.fakes.serve import BIN
from tests.system.machines import Driver
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.service.tls.keys import Keys, Side

PROGRAM = str(BIN / "vmdriver")


def settings(port: int, keys: Keys, folder: Path) -> Path:
    """compose.toml."""
    values = {
        "base": f"tls:127.0.0.1:{port}",
        "tls_server_name": "host.test",
        "tls_ca": keys.ca,
        "tls_crl": keys.crl,
        "tls_certificate": keys.certificate,
        "tls_key": keys.key,
        "bind_socket": folder / "c" / "c.sock",
        "state_dir": folder / "s",
    }
    path = folder / "compose.toml"
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    return path


def test_a_machine_lives_on_another_host_and_outlives_its_driver(
    new_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    authority, port = Authority(tmp_path / "ca"), free_port()
    server = authority.issue("host.test", Side.SERVER)
    client = authority.issue("gateway.test", Side.CLIENT)
    driver = new_driver(
        *("--bind-tls", f"127.0.0.1:{port}", "--tls-clients", "gateway.test"),
        *("--tls-ca", str(server.ca), "--tls-crl", str(server.crl)),
        *("--tls-certificate", str(server.certificate), "--tls-key", str(server.key)),
    )
    file = settings(port, client, tmp_path)
    asked = [PROGRAM, "doctor", "--compose", "--json", "--config", str(file)]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert json.loads(said.stdout)["outcome"] == "fine", said
    front = subprocess.Popen([PROGRAM, "compose", "--config", str(file)])
    channel = grpc.insecure_channel(f"unix:{tmp_path / 'c' / 'c.sock'}", EAGER)
    direct: Any = driver.stub
    try:
        grpc.channel_ready_future(channel).result(20)
        driver.stub = pb_grpc.ComputeDriverStub(channel)
        sandbox = driver.create()
        driver.wait(sandbox, "Running")
        assert driver.gateway.shell(sandbox, "echo far").strip() == "far"
        pid = driver.machine_pid(sandbox)
        driver.kill()
        driver.start()
        direct, driver.stub = driver.stub, pb_grpc.ComputeDriverStub(channel)
        driver.wait(sandbox, "Running")
        assert driver.machine_pid(sandbox) == pid, "the machine went on"
        assert driver.delete(sandbox)
    finally:
        driver.stub = direct
        channel.close()
        front.terminate()
        front.wait(20)
