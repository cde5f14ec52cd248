"""Looks at the files themselves: chains of layers, kept memories."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
from pathlib import Path

from tests.storm.tally import Tally
from vmdriver.errors import DriverError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.record import SandboxRecord
from vmdriver.storage.checkpoints import Checkpoints


def check_memories(state: Path, tally: Tally) -> None:
    """Every kept memory is what its manifest says."""
    asyncio.run(_check_memories(state, tally))


async def _check_memories(state: Path, tally: Tally) -> None:
    threads = Threads("storm", 2)
    checkpoints = Checkpoints(threads, Ownership(os.geteuid(), os.getegid()))
    sandboxes = state / "sandboxes"
    kept = [*sandboxes.glob("*/suspended"), *sandboxes.glob("*/snapshots/*")]
    try:
        for directory in kept:
            try:
                manifest, _ = await checkpoints.read(str(directory))
                damage = await checkpoints.damage(str(directory), manifest.parts)
            except DriverError as error:
                damage = [f"{error.message} {error.detail}"]
            sandbox = directory.relative_to(sandboxes).parts[0]
            if damage:
                tally.broken(
                    f"kept memory {directory.name}: {'; '.join(damage)}", sandbox
                )
    finally:
        threads.close()


def check_disks(state: Path, tally: Tally) -> None:
    """What every record stands on is there, and each layer names the one below it."""
    for path in (state / "sandboxes").glob("*/record.json"):
        try:
            record = SandboxRecord.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            tally.broken(f"{path}: {error}", path.parent.name)
            continue
        snapshots = {entry.name: entry.layers for entry in record.snapshots}
        for name, layers in {"": record.layers, **snapshots}.items():
            chain = [record.base, *layers] if layers else []
            for below, layer in itertools.pairwise(chain):
                problem = _stands_on(layer, below)
                if problem:
                    tally.broken(f"{name or 'root disk'}: {problem}", record.id)


def _stands_on(layer: str, below: str) -> str:
    command = ["qemu-img", "info", "-U", "--output=json", layer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"{layer}: {done.stderr.strip()}"
    found = json.loads(done.stdout)
    backing = found.get("full-backing-filename", found.get("backing-filename", ""))
    if not backing or not os.path.samefile(backing, below):
        return f"{layer} stands on {backing}, not on {below}"
    return ""


def check_layers(state: Path, tally: Tally) -> None:
    """No layer is damaged. Nothing runs. Clusters that are lost to nobody are no damage."""
    for layer in sorted((state / "layers").rglob("*.qcow2")):
        command = ["qemu-img", "check", "-U", "-q", str(layer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in {0, 3}:
            words = (done.stdout + done.stderr).strip()[:300]
            tally.broken(
                f"{layer.name}: qemu-img check says {done.returncode}: {words}"
            )
