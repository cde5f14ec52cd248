"""What the ledgers on a World's disk claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.fakes.world import World
from vmdriver.lifecycle.engine.ledger import replay
from vmdriver.model.record import SandboxRecord, layers_of


def devices_of(data: Mapping[str, Any]) -> set[str]:
    functions = json.loads(data.get("functions", "[]"))
    return {f"device {function['address']}" for function in functions}


def copies_of(data: Mapping[str, Any]) -> set[str]:
    return {f"file {path}" for path in json.loads(data.get("paths", "[]"))}


def held_objects(world: World) -> set[str]:
    """What the ledgers on disk claim, in the words of World.objects."""
    claimed = {
        f"file {layer}"
        for text in world.records.values()
        for layer in layers_of(SandboxRecord.model_validate_json(text))
    }
    for journal in world.journals.values():
        for entry in replay([json.loads(line) for line in journal]).values():
            data = entry.data
            claimed |= {
                "machine": {f"machine {data.get('domain')}"},
                "tap": {f"tap {data.get('tap')}", f"namespace {data.get('namespace')}"},
                "firewall": {f"firewall {data.get('tap')}"},
                "launch-files": {f"file {data.get('seed')}"},
                "overlay": {f"file {data.get('path')}"},
                "machine-user": {f"user {data.get('uid')}"},
                "capture:layer": {f"file {data.get('path')}"},
                "capture:volumes": copies_of(data),
                "devices": devices_of(data),
                "host-mounts": {f"folders {data.get('directory')}"},
            }.get(entry.key, set())
    return claimed


def check_claimed(world: World, kind: str) -> None:
    """Every object of that kind is in a ledger."""
    unclaimed = {o for o in world.objects() - held_objects(world) if o.startswith(kind)}
    assert not unclaimed, f"on the host, and in no ledger: {unclaimed}"
