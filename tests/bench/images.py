"""Measures the preparation of images: against the same tools by hand, taking turns, in one run. Started by scripts/bench."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.bench.printing import table
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from tests.fakes.settings import image_rules
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.oci import files
from vmdriver.oci.image_service import ImageService
from vmdriver.oci.policy import ImagePolicy

MIB = 2**20
PIECES = ("small", "eight", "new", "large")
LARGE_ROUNDS = 3
"""Each takes minutes by hand as well."""


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def by_hand(reference: str, work: Path) -> tuple[float, int]:
    """Seconds, and bytes of the tree that was unpacked."""
    begun = time.perf_counter()
    name = f"docker://{reference}"
    run("skopeo", "copy", "--src-tls-verify=false", name, f"oci:{work}/layout:x")
    run("umoci", "raw", "unpack", "--image", f"{work}/layout:x", work / "root")
    blocks = subprocess.run(
        ["du", "-sB1", work / "root"], check=True, capture_output=True, text=True
    )
    tree = int(blocks.stdout.split()[0])
    size = tree // MIB * 3 // 2 + 256
    run(
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-d",
        work / "root",
        work / "disk",
        f"{size}M",
    )
    with (work / "disk").open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - begun, tree


async def by_driver(
    reference: str, work: Path, policy: ImagePolicy
) -> tuple[float, int, list[float]]:
    """Seconds of the first time, bytes of the disk, and seconds of 20 times afterwards."""
    threads = Threads("bench", 4)
    store = ImageService(work / "store", threads, policy, numbers=UserNamespace())
    await store.open()
    begun = time.perf_counter()
    disk = await store.prepare(reference, "first", lambda _p: None)
    first = time.perf_counter() - begun
    again = []
    for number in range(20):
        begun = time.perf_counter()
        await store.prepare(reference, str(number), lambda _p: None)
        again.append(time.perf_counter() - begun)
    await store.close()
    threads.close()
    return first, Path(disk.path).stat().st_blocks * 512, again


async def eight_at_once(
    reference: str, work: Path, policy: ImagePolicy
) -> tuple[float, float]:
    """Seconds until the first and the last of eight had the image."""
    threads = Threads("bench", 4)
    store = ImageService(work / "eight", threads, policy, numbers=UserNamespace())
    await store.open()
    begun = time.perf_counter()

    async def one(number: int) -> float:
        await store.prepare(reference, str(number), lambda _p: None)
        return time.perf_counter() - begun

    ends = await asyncio.gather(*(one(number) for number in range(8)))
    await store.close()
    threads.close()
    return min(ends), max(ends)


def large_image(layout: Path, files: int = 50_000, size: int = 21_500) -> None:
    """About 1 GiB in 50,000 files, half of it incompressible."""
    generator = random.Random(1)
    tar = layout.parent / "large.tar"
    with tarfile.open(tar, "w") as archive:
        for number in range(files):
            info = tarfile.TarInfo(f"data/{number // 100}/{number}")
            info.size = size
            half = generator.randbytes(size // 2)
            archive.addfile(info, BytesIO(half + bytes(size - len(half))))
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:large")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:large", tar)
    tar.unlink()


def rss_mib() -> float:
    """The highest that this process, which stands for the driver, has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(
    reference: str, base: Path, policy: ImagePolicy, rounds: int
) -> dict[str, float]:
    """Both ways, in turns."""
    ratios, hands, ours, warm, sizes = [], [], [], [], []
    base = Path(tempfile.mkdtemp(dir=base))
    files.spread(base)
    for number in range(rounds):
        # Nothing is removed in between: ext4 makes files slowly where others were lately.
        places = [base / f"{what}-{number}" for what in ("hand", "own")]
        for place in places:
            place.mkdir()
        if number % 2:
            own, disk, again = asyncio.run(by_driver(reference, places[1], policy))
            hand, tree = by_hand(reference, places[0])
        else:
            hand, tree = by_hand(reference, places[0])
            own, disk, again = asyncio.run(by_driver(reference, places[1], policy))
        hands.append(hand)
        ours.append(own)
        ratios.append(own / hand)
        warm += again
        sizes.append(disk / tree)
    shutil.rmtree(base)
    return {
        "by_hand_s": statistics.median(hands),
        "driver_s": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "minima_ratio": min(ours) / min(hands),
        "warm_ms": statistics.median(warm) * 1e3,
        "size_ratio": statistics.median(sizes),
    }


def stamp(log: Path, text: str) -> float:
    """When the driver's log says so first, in seconds of the clock."""
    for line in log.read_text().splitlines():
        if text in line:
            return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()
    raise LookupError(f"{text} is not in the log")


def new_image(base: Path, address: str, rounds: int) -> dict[str, float]:
    """Seconds to Running of a sandbox whose image nobody has had: from CreateSandbox and from the first bytes;
    and of one whose image is there. Each with a driver of its own that knows no image.
    """
    created, fetched, known = [], [], []
    gateway, image = Gateway(), f"{address}/demo:1"
    try:
        for number in range(rounds):
            state = Path(tempfile.mkdtemp(dir=base))
            state.chmod(0o755)
            (state / "boot").symlink_to(WORK / "boot")
            with Process(state, gateway, address) as driver:
                seconds = []
                for which in ("new", "known"):
                    name = f"{which}{number}"
                    sandbox = Sandbox(driver, gateway, request_of(name, image, 512, 0))
                    ended = time.time()
                    gateway.wait_hello(sandbox.id)
                    seconds.append(sandbox.create_s)
                    if which == "new":
                        begun = stamp(driver.log, f"{sandbox.id}: PullingLayer")
                        fetched.append(ended - begun)
                    sandbox.delete()
                created.append(seconds[0])
                known.append(seconds[1])
    finally:
        gateway.close()
    return {
        "create_s": statistics.median(created),
        "create_least_s": min(created),
        "first_bytes_s": statistics.median(fetched),
        "known_s": statistics.median(known),
        "ratio": statistics.median(a / b for a, b in zip(created, known, strict=True)),
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pieces", default=",".join(PIECES), help="some of them only")
    parser.add_argument(
        "--large-rounds", type=int, default=LARGE_ROUNDS, help="of 1 GiB each"
    )


def measure(rounds: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """`small_` and `large_`: both ways; `eight_`; `new_`: a sandbox of a new image."""
    base = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    base.chmod(0o755)
    found: dict[str, float] = {}

    def note(prefix: str, figures: dict[str, float]) -> None:
        found.update({f"{prefix}_{key}": value for key, value in figures.items()})

    try:
        files.spread(base)
        with registry(base / "registry") as address:
            image, policy = f"{address}/demo:1", image_rules((address,))
            push(WORK / "demo-image", "demo", image)
            for piece in chosen.pieces.split(","):
                if piece == "small":
                    note(piece, measured(image, base, policy, rounds))
                elif piece == "eight":
                    ends = asyncio.run(eight_at_once(image, base, policy))
                    note(piece, dict(zip(("first_s", "last_s"), ends, strict=True)))
                elif piece == "new":
                    note(piece, new_image(base, address, rounds))
                else:
                    large = f"{address}/large:1"
                    large_image(base / "large")
                    push(base / "large", "large", large)
                    before = rss_mib()  # after what makes images, and a small one
                    note(piece, measured(large, base, policy, chosen.large_rounds))
                    note("rss", {"mib": before, "grown_mib": rss_mib() - before})
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return found


def show(found: dict[str, Any]) -> None:
    rows = []
    for key, name in (("small", "demo image"), ("large", "1 GiB in 50,000 files")):
        if f"{key}_ratio" not in found:
            continue
        v = {k.removeprefix(f"{key}_"): found[k] for k in found if k.startswith(key)}
        text = (
            f"{v['driver_s']:.2f} s = {v['ratio']:.2f} x {v['by_hand_s']:.2f} s by hand (minima {v['minima_ratio']:.2f});"
            f" disk {v['size_ratio']:.2f} x the tree; warm {v['warm_ms']:.1f} ms"
        )
        rows.append((name, text))
    if "eight_last_s" in found:
        first, last = found["eight_first_s"], found["eight_last_s"]
        text = f"last after {last:.2f} s = {last / first:.2f} x the first's"
        rows.append(("8 at once", text))
    if "new_ratio" in found:
        text = (
            f"{found['new_create_s']:.2f} s from CreateSandbox, {found['new_first_bytes_s']:.2f} s from the first bytes;"
            f" {found['new_known_s']:.2f} s when it is there: {found['new_ratio']:.2f} x"
        )
        rows.append(("a new image to Running", text))
    if "rss_mib" in found:
        text = f"+ {found['rss_grown_mib']:.1f} MiB of {found['rss_mib']:.0f} MiB"
        rows.append(("memory for the large one", text))
    title = "Images, against skopeo copy + umoci raw unpack + mke2fs -d by hand"
    table(title, rows)
