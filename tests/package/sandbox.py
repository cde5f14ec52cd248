"""A gateway and its one sandbox, for a driver that is a service: run with the package's own Python.

Its image is given, or `known` where the sandbox is there already and runs, `suspended` where its memory is to be brought back.
Reads words, answers each with a line: `check` runs a command in the guest, `suspend` and `resume` do that, `start` has it
booted and says what is on its disk, `write` writes to that and does not sync, `written` says what was.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.demo.gateway import Gateway
from vmdriver.demo.life import SANDBOX, Watcher, request
from vmdriver.service import admin_client

SOCKET = "unix:/run/vmdriver/compute-driver.sock"
ADMIN = Path("/var/lib/vmdriver/run/admin.sock")


def started(gateway: Gateway) -> str:
    """The service may be another one than before: nothing is kept of what was said to that."""
    heard = len(gateway.session(SANDBOX).hellos)
    with grpc.insecure_channel(SOCKET) as channel:
        stub = pb_grpc.ComputeDriverStub(channel)
        stub.StartSandbox(pb.StartSandboxRequest(sandbox_id=SANDBOX))
    gateway.wait_hello(SANDBOX, heard + 1)
    script = "cat /sandbox/proof; echo still > /dev/shm/proof"
    return gateway.shell(SANDBOX, script).strip()


def create(image: str) -> None:
    with grpc.insecure_channel(SOCKET) as channel:
        stub = pb_grpc.ComputeDriverStub(channel)
        watcher = Watcher(stub)
        stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=request(image)))
        watcher.wait("Ready=True/Running")


def main(port: int, image: str) -> int:
    gateway = Gateway(port)
    if image == "suspended":
        admin_client.resume(ADMIN, SANDBOX, False, lambda *_: None)
    else:
        if image != "known":
            create(image)
        gateway.wait_hello(SANDBOX)
        begun = "echo here > /sandbox/proof; " if image != "known" else ""
        gateway.shell(SANDBOX, f"{begun}echo still > /dev/shm/proof")
    print("runs", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "start":
            print(started(gateway), flush=True)
            continue
        if word == "write":
            gateway.shell(SANDBOX, "echo late > /sandbox/late")
            print("written", flush=True)
            continue
        if word == "written":
            said = gateway.shell(SANDBOX, "cat /sandbox/late || true")
            print(said.strip() or "lost", flush=True)
            continue
        if word == "suspend":
            admin_client.suspend(ADMIN, SANDBOX, lambda *_: None)
        elif word == "resume":
            admin_client.resume(ADMIN, SANDBOX, False, lambda *_: None)
        said = (
            ""
            if word == "suspend"
            else gateway.shell(SANDBOX, "cat /sandbox/proof /dev/shm/proof")
        )
        print(" ".join(said.split()) or "done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
