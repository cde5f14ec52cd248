"""What commands print on a terminal, of values made up for it: pictures of docs/screens.md."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, RenderableType

from vmdriver.cli.ls import listing
from vmdriver.cli.page import page, rendered
from vmdriver.cli.top.app import Top
from vmdriver.config import load
from vmdriver.model.checkpoint import SnapshotEntry
from vmdriver.model.condition import PlatformEvent
from vmdriver.model.host_mount import HostMount
from vmdriver.model.image import ImageConfig
from vmdriver.model.ipv6 import block, private_pool
from vmdriver.model.phase import Phase
from vmdriver.model.picture import (
    Picture,
    SeenEvent,
    SeenSandbox,
    SeenTemplate,
    Totals,
)
from vmdriver.model.plan import Disk, LaunchPlan, MountedVolume
from vmdriver.model.record import SandboxRecord
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.timing import StartTiming, TimedStep
from vmdriver.model.usage import Usage

NOW = datetime(2026, 11, 26, 20, 4, 17, tzinfo=UTC)
GIB, MIB = 2**30, 2**20
_SIZE = (80, 24)


def _sandbox(name: str, phase: Phase, minutes: int, **use: float) -> SeenSandbox:
    reasons = {
        Phase.RUNNING: ("Running", "the machine is running"),
        Phase.SUSPENDED: ("Suspended", "the machine is suspended; its memory is kept"),
        Phase.FAILED: ("MainProcessExited", "the main process ended with status 1"),
    }
    reason, message = reasons[phase]
    since = NOW - timedelta(minutes=minutes)
    usage = Usage(run=name, **use) if use else None  # type: ignore[arg-type]
    return SeenSandbox(
        id=f"id-{name}",
        name=name,
        workspace="blue",
        phase=phase.value,
        intent="suspended" if phase is Phase.SUSPENDED else "running",
        reason=reason,
        message=message,
        since=since,
        created=since,
        usage=usage,
        stored=(len(name) * 37) * MIB,
    )


def _picture(at: float) -> Picture:
    def grows(per_s: float) -> float:
        return per_s * at

    sandboxes = (
        _sandbox(
            "builder",
            Phase.RUNNING,
            184,
            cpu_s=grows(1.87),
            memory=910 * MIB,
            own=820 * MIB,
            shared=180 * MIB,
            written=int(grows(31 * MIB)),
            received=int(grows(2.5 * MIB)),
        ),
        _sandbox(
            "docs-reader",
            Phase.RUNNING,
            3,
            cpu_s=grows(0.04),
            memory=96 * MIB,
            own=41 * MIB,
            shared=210 * MIB,
            received=int(grows(1200)),
        ),
        _sandbox("night-shift", Phase.SUSPENDED, 700),
        _sandbox("reviewer", Phase.FAILED, 12),
    )
    told = (
        (184, "id-builder", "Started", "booted in 1874 ms", "Normal"),
        (12, "id-reviewer", *reversed(("the main process ended with status 1", "MainProcessExited")), "Warning"),
        (5, "id-docs-reader", "Forked", "from template 4f1c", "Normal"),
        (3, "id-docs-reader", "Started", "forked in 118 ms", "Normal"),
    )  # fmt: skip
    return Picture(
        at=NOW,
        version="0.1.0",
        used_at=at,
        sandboxes=sandboxes,
        templates=(SeenTemplate("4f1c", "sha256:9b1e", 1, 512, 140 * MIB, 2),),
        events=tuple(
            SeenEvent(
                sandbox,
                PlatformEvent(reason, text, NOW - timedelta(minutes=ago), kind),
            )
            for ago, sandbox, reason, text, kind in told
        ),
        totals=Totals(
            committed=4 * GIB,
            memory_limit=32 * GIB,
            sandbox_limit=1000,
            disk_free=112 * GIB,
        ),
    )


class _Still:
    """An observer of a driver in which nothing happens any more."""

    async def pictures(self, _interval_s: float) -> AsyncIterator[Picture]:
        for at in (10.0, 12.0):
            yield _picture(at)
        await asyncio.Event().wait()


def top() -> str:
    """`vmdriver top` at 80 columns by 24 lines."""

    async def draw() -> list[str]:
        screen = Top(load(environment={}), _Still(), 2.0)  # type: ignore[arg-type]
        async with screen.run_test(size=_SIZE) as pilot:
            while not any("187" in line for line in _shown(screen)):
                await pilot.pause(0.01)
            return _shown(screen)

    return "\n".join(asyncio.run(draw()))


def _shown(screen: Top) -> list[str]:
    strips = screen.screen._compositor.render_strips()
    return [strip.text.rstrip() for strip in strips]


def _drawn(renderable: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def ls() -> str:
    """`vmdriver ls`."""
    rows = [
        {
            "id": seen.id,
            "name": seen.name,
            "workspace": seen.workspace,
            "type": "Suspended" if seen.phase == "suspended" else "Ready",
            "status": str(seen.phase in {"suspended", "running"}),
            "reason": seen.reason,
            "since": seen.since.isoformat(),
        }
        for seen in _picture(1.0).sandboxes
    ]
    return _drawn(listing(rows, NOW, 100))


def _given(plan: LaunchPlan) -> LaunchPlan:
    """With a volume, a folder of the host and IPv6."""
    disk = Disk(role="volume0", path="v", format="raw", read_only=False, size_mib=4096)
    folder = HostMount(
        tag="hostfs0",
        path="/srv/models",
        allowed="/srv/models",
        mount="/data/models",
        read_only=True,
        socket="s",
    )
    ipv6 = block(private_pool("vmdriver"), plan.network.lease.index, ())
    given = {
        "disks": (*plan.disks, disk),
        "volumes": (
            MountedVolume(
                role="volume0", workspace="blue", name="cache", mount="/data/cache"
            ),
        ),
        "host_mounts": (folder,),
        "network": plan.network.model_copy(update={"ipv6": ipv6}),
    }
    return plan.model_copy(update=given)


def inspect(plan: LaunchPlan) -> str:
    """`vmdriver inspect ID`."""
    plan = _given(plan)
    record = SandboxRecord(
        spec=SandboxSpec(
            id="id-builder",
            name="builder",
            workspace="blue",
            image="registry.example/builder:3",
            labels={"team": "blue"},
        ),
        phase=Phase.RUNNING,
        created_at=NOW - timedelta(minutes=184),
        changed_at=NOW - timedelta(minutes=3, seconds=5),
        plan=plan,
        lease=plan.network.lease,
        launches=2,
        image_digest=plan.image_digest,
        image_config=ImageConfig(user="1000", command=("make", "-j", "4")),
        last_start=StartTiming(
            kind="relaunched",
            at=NOW - timedelta(minutes=3, seconds=5),
            steps=(TimedStep(name="machine", begun_ms=0, ended_ms=1874.0),),
        ),
        snapshots=(
            SnapshotEntry(
                name="before-upgrade",
                created_at=NOW - timedelta(minutes=90),
                layers=("a",),
                disk_bytes=259 * MIB,
                steps=(TimedStep(name="freeze", begun_ms=1, ended_ms=24),),
            ),
        ),
    )
    ledger: Sequence[Any] = [
        {"key": key, "scope": scope, "done": True}
        for key, scope in (
            ("lease", "persistent"),
            ("tap", "runtime"),
            ("machine", "runtime"),
        )
    ]
    found = {
        "record": record.model_dump(mode="json"),
        "unreadable": None,
        "ledger": ledger,
        "guest": {
            "phase": "started",
            "exit_code": None,
            "reason": "",
            "stamps": {"init": 0.31, "supervisor": 0.74},
        },
        "machine": {"domain": plan.domain, "running": True, "pid": 4242},
        "addresses": plan.network.lease.model_dump(),
        "console_tail": "vmdriver: the supervisor is started",
        "directory": "/var/lib/vmdriver/sandboxes/id-builder",
    }
    return _drawn(rendered(page("id-builder", found, NOW)))
