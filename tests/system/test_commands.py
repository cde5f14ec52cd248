"""Operators' commands in real machines: that booted, that were forked, that came back from their memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.fakes.serve import BIN
from tests.fakes.waiting import until
from tests.system.machines import Driver

ON = ["--operator-exec", "true"]


def start(driver: Driver, sandbox: str, *words: str, options: tuple[str, ...] = ()) -> list[str]:  # fmt: skip
    command = [str(BIN / "vmdriver"), "exec", *driver.arguments(), *options]
    return [*command, sandbox, "--", *words]


def told(driver: Driver, sandbox: str, *words: str, options: tuple[str, ...] = (), given: bytes = b"") -> tuple[int, bytes, bytes]:  # fmt: skip
    done = subprocess.run(
        start(driver, sandbox, *words, options=options), input=given, capture_output=True, timeout=100
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def works(driver: Driver, sandbox: str) -> None:
    """Who it is, where, and that nothing of it passes by."""
    shell = "id -un; pwd; hostname; grep NoNewPrivs /proc/self/status; cat; echo to err >&2; exit 7"  # fmt: skip
    status, out, err = told(driver, sandbox, "sh", "-c", shell, given=b"given\n")
    lines = out.decode().splitlines()
    assert (status, err) == (7, b"to err\n")
    assert lines[:2] == ["sandbox", "/sandbox"]
    assert lines[3:] == ["NoNewPrivs:\t1", "given"]
    assert told(driver, sandbox, "id", "-u", options=("--root",))[1] == b"0\n"
    assert told(driver, sandbox, "sh", "-c", "echo x >/proc/self/fd/2") == (0, b"", b"x\n")  # fmt: skip
    # A chroot, as the kernel sees it, may have no user namespaces.
    status, _, err = told(driver, sandbox, "unshare", "--user", "true")
    assert (status, err) == (0, b"")


def test_commands_run_in_machines_that_booted_forked_and_came_back(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver(*ON)
    driver.wait_for_template()
    sandbox = driver.create()
    plan = driver.plan(sandbox)
    assert plan["operator_exec"] is True
    works(driver, sandbox)
    data = os.urandom(200_000)
    assert told(driver, sandbox, "cat", given=data) == (0, data, b"")
    driver.suspend(sandbox)
    driver.resume(sandbox)
    works(driver, sandbox)
    driver.snapshot(sandbox, "one")
    driver.go_back(sandbox, "one")
    works(driver, sandbox)
    driver.stop(sandbox)
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    works(driver, sandbox)
    log = driver.log.read_text()
    assert re.search(r"OperatorCommand: uid 0 \(the driver's\), process \d+.* runs a command as root, which is: id -u", log)  # fmt: skip
    assert "ended with exit code 7" in log
    assert "given" not in log


def runs(driver: Driver, sandbox: str, mark: str) -> bool:
    look = f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep {mark}' || true"
    return driver.gateway.shell(sandbox, look).strip() != "0"


def test_a_command_whose_client_ends_ends_and_what_is_off_is_refused(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver(*ON)
    sandbox = driver.create()
    for number, mark in ((signal.SIGINT, "91001"), (signal.SIGKILL, "91002")):
        process = subprocess.Popen(
            start(driver, sandbox, "sh", "-c", f"sleep {mark} & wait")
        )
        until(lambda mark=mark: runs(driver, sandbox, mark), "it runs")  # type: ignore[misc]
        process.send_signal(number)
        process.wait(10)
        until(lambda mark=mark: not runs(driver, sandbox, mark), "it has ended")  # type: ignore[misc]
    status, _, err = told(driver, sandbox, "sleep", "900", options=("--timeout", "2"))
    assert (status, b"took longer than 2 s" in err) == (125, True)

    # A driver that is killed leaves one behind, which ends by itself.
    process = subprocess.Popen(start(driver, sandbox, "sleep", "91003"))
    until(lambda: runs(driver, sandbox, "91003"), "it runs")
    driver.kill()
    assert process.wait(10) == 125
    driver.options[:] = []
    driver.start()
    driver.wait(sandbox, "Running")
    until(lambda: not runs(driver, sandbox, "91003"), "it has ended", 60)
    status, _, err = told(driver, sandbox, "id")
    assert (status, b"no driver serves operators' commands" in err) == (125, True)

    # Its machine was begun with them; one that is begun now is not, also once they are on again.
    other = driver.create()
    driver.kill()
    driver.options[:] = ON
    driver.start()
    driver.wait(other, "Running")
    status, _, err = told(driver, other, "id")
    assert (status, b"started without operators' commands" in err) == (125, True)
    path = driver.directory(other) / "record.json"
    record = json.loads(Path(path).read_text())
    driver.kill()
    record["plan"]["operator_exec"] = True
    path.write_text(json.dumps(record))
    driver.start()
    driver.wait(other, "Running")
    status, _, err = told(driver, other, "id")
    assert (status, b"the machine was started without" in err) == (125, True), (
        "the guest itself says no"
    )
    works(driver, sandbox)
