"""A report about a host with a real machine, beside its driver and without one."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

from tests.fakes.serve import BIN
from tests.system.machines import Driver
from vmdriver._proto import compute_driver_pb2 as pb

SECRETS = ("canary-of-the-request-5f0e", "canary-of-the-token-5f0e")


def packed(driver: Driver, path: Path, *more: str) -> dict[str, str]:
    command = [str(BIN / "vmdriver"), "doctor", "--bundle", str(path), *more]
    done = subprocess.run(
        [*command, *driver.arguments()], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = {}
    with tarfile.open(path) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
    assert not [n for n, t in found.items() if any(s in t for s in SECRETS)]
    assert not any(secret in done.stdout for secret in SECRETS)
    return found


def test_a_report_is_had_with_a_driver_and_without_and_holds_no_secret(
    driver: Driver, tmp_path: Path
) -> None:
    template = pb.DriverSandboxTemplate(image=driver.host.image)
    sandbox = driver.create(
        template=template,
        environment={"API_KEY": SECRETS[0]},
        sandbox_token=SECRETS[1],
    )
    assert SECRETS[0] in (driver.directory(sandbox) / "record.json").read_text()
    assert (driver.directory(sandbox) / "token").read_text() == SECRETS[1]
    for name, runs in (("beside", True), ("without", False)):
        if not runs:
            driver.kill()
        more = [] if runs else ["--log", str(driver.log)]
        found = packed(driver, tmp_path / f"{name}.tar.gz", *more)
        record = json.loads(found[f"sandboxes/{sandbox}/record.json"])
        assert record["spec"]["environment"] == {"API_KEY": "[withheld]"}
        assert record["plan"]["memory_mib"] == 512
        assert f"{sandbox}: Running" in found["driver.log"]
        assert (
            "starting up libvirt"
            in found[f"machines/{driver.plan(sandbox)['domain']}.log"]
        )
        assert "QEMU" in {f["check"] for f in json.loads(found["doctor.json"])["findings"]}  # fmt: skip
        assert ("told.json" in found) is runs
    driver.start()
    driver.wait(sandbox, "Running")
