"""Whether a driver serves operators' commands is its operator's word."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from vmdriver.app import Driver
from vmdriver.config import load
from vmdriver.config.views import exec_socket
from vmdriver.errors import Unavailable
from vmdriver.lifecycle.control.commands import Commands
from vmdriver.service.streams.server import StreamServer
from vmdriver.serving import serve_commands


async def never() -> Commands:
    raise Unavailable("the driver is still starting")


@pytest.mark.parametrize("said", ["", "operator_exec = false", "operator_exec = true"])
async def test_commands_are_served_only_where_it_was_said(
    tmp_path: Path, said: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"state_dir = '{tmp_path / 'state'}'\n{said}")
    config = load(file=file, environment={}).config
    driver, streams = Driver(config), StreamServer(never)
    try:
        await serve_commands(driver, streams)
        socket = exec_socket(config)
        assert socket.exists() is said.endswith("true")
        if socket.exists():
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    finally:
        await streams.close()
        driver.release_threads()
