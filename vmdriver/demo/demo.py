"""The whole demo: a host that is fit, an image, a driver, a sandbox's life, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.demo import image
from vmdriver.demo.driver import SOCKET_FOLDER, VMDRIVER, Place, driver
from vmdriver.demo.gateway import Gateway
from vmdriver.demo.life import delete, life, say
from vmdriver.demo.undisturbed import alone, ended_once
from vmdriver.errors import CommandError, DriverError
from vmdriver.host import process
from vmdriver.hypervisor.kvm import outcome as kvm_outcome

_SOON = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""The driver is just being begun: whoever comes too early is not to wait for a second."""
_KVM_IS_TRIED = (
    "whether KVM works here is tried with a guest of its own; the first machine waits for that, "
    "some 30 s at most"
)
"""As nothing else is said in that time, it looks as if nothing happened."""


@dataclass(frozen=True)
class Wanted:
    """What whoever typed it has said. `folder`: where the demo works. `image`: a reference, "": one
    that is made of this host's packages. `boot_files`: where they come from, None: as a driver that
    is installed finds them. `keep`: its folder stays.
    """

    folder: Path
    image: str = ""
    boot_files: Path | None = None
    keep: bool = False


def demo(wanted: Wanted) -> int:
    """Its last line is one JSON object. 0: all went well, and nothing is left; 130: it was told to
    end, and nothing is left; else 1. Unavailable where another demo runs on this host.
    """
    with ended_once(), alone(SOCKET_FOLDER):
        return _alone(wanted)


def _alone(wanted: Wanted) -> int:
    gateway = Gateway()
    figures: dict[str, Any] = {"ok": False}
    more = ["--boot-files", str(wanted.boot_files)] if wanted.boot_files else []
    state = wanted.folder / "state"
    place = Place(state, wanted.folder, gateway.url, tuple(more))
    status = 1
    try:
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        wanted.folder.chmod(0o711)
        figures = _run(place, wanted, gateway)
        status = 0 if figures["ok"] else 1
    except (RuntimeError, TimeoutError, DriverError, OSError, grpc.RpcError) as error:
        say(f"failed: {error}")
        figures["error"] = str(error)
    except KeyboardInterrupt:
        figures["error"] = "it was told to end"
        status = 1 if _said_left(place) else 130
    finally:
        gateway.close()
    if status != 1 and not wanted.keep:
        shutil.rmtree(wanted.folder, ignore_errors=True)
    print(json.dumps(figures), flush=True)
    return status


def _run(place: Place, wanted: Wanted, gateway: Gateway) -> dict[str, Any]:
    reference = wanted.image or _image(place.images)
    with (
        driver(place) as socket,
        grpc.insecure_channel(f"unix:{socket}", _SOON) as channel,
    ):
        if Path("/dev/kvm").exists():
            say(_KVM_IS_TRIED)
        admin = place.state / "run" / "admin.sock"
        stub = pb_grpc.ComputeDriverStub(channel)
        try:
            measured = life(stub, gateway, reference, admin)
        except BaseException:
            # A driver that ends leaves its machine running.
            with contextlib.suppress(grpc.RpcError):
                delete(stub)
            raise
    left = _said_left(place)
    known = kvm_outcome.load(place.state / "accelerator.json")
    accelerator = "kvm" if known is not None and known.works else "tcg"
    figures: dict[str, Any] = {"ok": not left, "accelerator": accelerator}
    figures |= {key: round(value, 3) for key, value in measured.items()}
    return figures | {"leftovers": len(left)}


def _said_left(place: Place) -> list[str]:
    left = asyncio.run(_left(place))
    for item in left:
        say(f"left over: {item}")
    return left


def _image(folder: Path) -> str:
    layout = folder / "image"
    shutil.rmtree(layout, ignore_errors=True)
    digest = image.build(layout)
    say(f"made a small image of this host's packages: {digest}")
    return f"oci:{layout}:{image.TAG}"


async def _left(place: Place) -> list[str]:
    """What a sweep would find, and sandboxes' files: asked of a command that has not made them."""
    words = [*VMDRIVER, "sweep", "--dry-run", "--json", *place.flags()]
    try:
        done = await process.run(words, deadline_s=60)
    except CommandError as error:
        return [f"whatever there is: it cannot be looked for: {error}"]
    found = json.loads(done.stdout)["orphans"]
    files = [f"directory {path}" for path in (place.state / "sandboxes").glob("*")]
    return [f"{item['kind']} {item['name']}" for item in found] + files
