"""Real machines from images that are not ours: no libc in them, no shell, and larger disks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2

from tests.fakes.oci_layout import Layout, directory, entry, layer
from tests.fakes.registry import push
from tests.system.machines import Driver, Host
from tests.system.stage import WITHOUT_TEMPLATES
from vmdriver._proto import compute_driver_pb2 as pb

SUPERVISOR = r"""
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

int main(void) {  /* 7: all is as it should be */
    struct statvfs root;
    char self[256] = "";
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0 || !strstr(self, "openshell-sandbox"))
        return 8;
    if (statvfs("/", &root) < 0 || (unsigned long long)root.f_blocks * root.f_frsize < 2800ULL << 20)
        return 9;
    FILE *file = fopen("/from-the-image", "r");
    return file && fgetc(file) == 'y' ? 7 : 10;
}
"""


def image(layout: Layout, tag: str, address: str, *fills: Any) -> str:
    layout.image(tag, [layer(*fills)])
    reference = f"{address}/{tag}:1"
    push(layout.path, tag, reference)
    return reference


def test_a_guest_without_a_libc_runs_a_dynamic_supervisor_from_an_image(
    new_driver: Callable[..., Driver], fresh_host: Host, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    command = ["gcc", "-x", "c", "-", "-o", str(program)]
    subprocess.run(command, input=SUPERVISOR.encode(), check=True)
    needed = ["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"]
    layout = Layout(tmp_path / "layout")
    supervisor = image(
        layout,
        "supervisor",
        fresh_host.registry,
        entry("openshell-sandbox", program.read_bytes(), mode=0o755),
        *(entry(path[1:], Path(path).read_bytes(), mode=0o755) for path in needed),
    )
    bare = image(
        layout,
        "bare",
        fresh_host.registry,
        directory("srv"),
        entry("from-the-image", "y"),
    )
    options = ["--supervisor-path", "", "--supervisor-image", supervisor]
    driver = new_driver(*WITHOUT_TEMPLATES, *options, host=fresh_host)
    config = struct_pb2.Struct()
    config.update({"disk_mib": 3072})
    template = pb.DriverSandboxTemplate(image=bare, driver_config=config)
    sandbox = driver.create(wait=False, template=template)
    driver.wait(sandbox, "MainProcessExited")
    found = driver.inspect(sandbox)
    assert found["record"]["failure"]["exit_code"] == 7, found["record"]["failure"]
    assert driver.delete(sandbox)
    listed = driver.cli("images", "ls")
    used = {image["digest"]: image["in_use"] for image in listed}
    assert used, "the cache stays"
    assert not any(used.values())
    findings = driver.cli("doctor")["findings"]
    (told,) = [f for f in findings if f["check"] == "supervisor"]
    assert f"{supervisor}, sha256:" in told["message"]
    events = driver.operate("images", "prefetch", bare)
    assert events[-1]["reason"] == "CacheHit"
    assert driver.cli("images", "gc", "--dry-run") == []
