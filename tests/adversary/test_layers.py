"""What an escaped QEMU can have root do by what it writes into its own disk layer (row 3 of what stood open: `qemu-img
commit` as root followed it to any file of the host).
"""

from __future__ import annotations

from pathlib import Path

from tests.adversary.inside import in_machine
from tests.contract.canary import SECRET, watched
from tests.fakes.waiting import until
from tests.system.machines import Driver

WRITE = """
import json, os, struct, sys
layer, target = json.load(sys.stdin)
file = os.open(layer, os.O_RDWR)
header = os.pread(file, 4096, 0)
name_at, size = struct.unpack(">QI", header[8:20])
length = struct.unpack(">I", header[100:104])[0]
data = target.encode()
more = struct.pack(">II", 0x44415441, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\\0")
named = header[name_at : name_at + size]
os.pwrite(file, more + header[length:name_at] + named, length)
os.pwrite(file, struct.pack(">Q", name_at + len(more)), 8)
os.pwrite(file, struct.pack(">Q", 0x14), 72)
os.pwrite(file, struct.pack(">Q", 2), 88)
os.fsync(file)
print(json.dumps(os.pread(file, 4096, 0).count(data)))
"""
"""Its data is in another file from now on, says the header (the raw one's flag, as no table is needed then)."""


def test_a_layer_that_names_a_file_of_the_hosts_leads_nobody_there(
    driver: Driver,
) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    driver.operate("snapshot", "create", sandbox, "one", "--disk-only")
    driver.operate("snapshot", "rm", sandbox, "one")
    layers = [path for path in driver.record(sandbox)["layers"] if sandbox in path]
    assert len(layers) == 2, "a stop would merge them"
    canary = driver.host.state / f"canary-{sandbox}"
    canary.write_bytes(SECRET)
    canary.chmod(0o600)
    written = in_machine(driver.machine_pid(sandbox), WRITE, [layers[-1], str(canary)])
    assert written == 1
    with watched(canary):
        driver.stop(sandbox)
        until(lambda: "MergeFailed" in driver.log.read_text(), "it was not told", 30)
        assert driver.record(sandbox)["layers"][-2:] == layers
        driver.start_sandbox(sandbox)
        said = driver.wait(sandbox, "ProvisioningFailed")
        assert "LayerRefused" in said
        assert "it has its data in another file" in said
        assert all(Path(layer).exists() for layer in layers)
        assert driver.delete(sandbox)
    canary.unlink()
    assert not any(Path(layer).exists() for layer in layers)
