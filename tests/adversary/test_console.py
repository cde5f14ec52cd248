"""What a guest prints: how much of it the host keeps, and what it does to whoever reads it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.fakes.serve import BIN
from tests.fakes.waiting import until
from tests.system.machines import Driver
from vmdriver.host import console_file

EVIL = r"\033]0;owned\007\033[2J\302\233 31m \342\200\256 end"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b 31m \u202e end"


def largest_file(pid: int) -> int:
    text = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"^Max file size +(\d+) ", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def test_a_console_is_bounded_while_no_driver_runs_and_holds_nobody_up(
    driver: Driver,
) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid, console = (
        driver.machine_pid(sandbox),
        driver.directory(sandbox) / "console.log",
    )
    ceiling = largest_file(pid)
    assert console.stat().st_blocks * 512 < console_file.LIMIT
    driver.kill()
    with console.open("ab") as file:  # as the guest would, in an hour of its UART
        most = ceiling - console.stat().st_size
        assert 0 < most <= console_file.ROOM + console_file.LIMIT
        file.write(b"y" * (most - 100_000))
    driver.gateway.shell(sandbox, "yes | head -c 150000 >/dev/console")
    assert console.stat().st_size == ceiling
    assert console.stat().st_blocks * 512 <= console_file.ROOM + 2 * console_file.LIMIT
    os.kill(pid, 0)
    assert driver.gateway.shell(sandbox, "echo alive") == "alive\n"
    driver.start()
    driver.wait(sandbox, "Running")
    assert driver.machine_pid(sandbox) == pid
    until(lambda: console.stat().st_size < ceiling - console_file.ROOM // 2, limit_s=10)
    assert console.stat().st_blocks * 512 < console_file.LIMIT
    driver.gateway.shell(sandbox, "echo printed afterwards >/dev/console")
    until(lambda: "printed afterwards" in console_file.tail(console))


def test_escapes_that_a_guest_prints_reach_a_terminal_only_if_asked_for(
    driver: Driver,
) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    console = driver.directory(sandbox) / "console.log"
    driver.gateway.shell(sandbox, f"printf '{EVIL}\\r\\nlast\\n' >/dev/console")
    until(lambda: "last" in console_file.tail(console))

    def told(*command: str) -> bytes:
        words = [str(BIN / "vmdriver"), *command, *driver.arguments()]
        return subprocess.run(words, check=True, capture_output=True).stdout

    for command in (("console", sandbox), ("inspect", sandbox)):
        text = told(*command).decode()
        assert SHOWN in text
        assert text.replace("\n", "").replace("\t", "").isprintable()
    assert SHOWN in driver.cli("console", sandbox)["console"]
    assert SHOWN in driver.inspect(sandbox)["console_tail"]
    assert b"\x1b]0;owned\x07\x1b[2J" in told("console", sandbox, "--raw")
