"""Gateways that watch: what they are told of deleted sandboxes, and whether it was true."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.storm.processes import machines
from tests.storm.promises import Sandboxes
from tests.storm.stage import INSTANCE, Keeper
from tests.storm.tally import Tally
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.model.ids import domain_name, mark


@dataclass
class Watcher:
    """One stream after the other, as long as the storm takes."""

    number: int
    keeper: Keeper
    sandboxes: Sandboxes
    tally: Tally
    deleted: set[str] = field(default_factory=set)
    streams: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of each stream's first event and of its end."""
    ended: threading.Event = field(default_factory=threading.Event)
    _channel: grpc.Channel | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(
            target=self._play, name=f"watcher {self.number}", daemon=True
        )
        thread.start()
        return thread

    def close(self) -> None:
        self.ended.set()
        if self._channel is not None:
            self._channel.close()

    def _play(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(grpc.RpcError, ValueError):
                self._watch()
            time.sleep(0.1)

    def _watch(self) -> None:
        with self.keeper.channel() as channel:
            self._channel = channel
            events = pb_grpc.ComputeDriverStub(channel).WatchSandboxes(
                pb.WatchSandboxesRequest(), wait_for_ready=True
            )
            first = None
            try:
                for event in events:
                    first = first if first is not None else self.tally.now()
                    kind = event.WhichOneof("payload")
                    if kind == "deleted":
                        self._was_deleted(event.deleted.sandbox_id)
                    elif kind == "sandbox":
                        self._is(event.sandbox.sandbox)
            finally:
                if first is not None:
                    self.streams.append((first, self.tally.now()))

    def _is(self, seen: pb.DriverSandbox) -> None:
        """A machine that ran ends only where somebody killed it: not for a full disk, nor a driver."""
        first = seen.status.conditions[0]
        sandbox = self.sandboxes.get(seen.id)
        if (
            sandbox is not None
            and first.reason == "MachineCrashed"
            and not sandbox.faults
        ):
            sandbox.faults.append("ended by itself")
            self.tally.broken(f"nobody killed its machine: {first.message}", sandbox.id)

    def _was_deleted(self, sandbox: str) -> None:
        """Never before no process, tap, table and file of it is left."""
        left = traces(sandbox, self.keeper.state)
        self.tally.note(f"watcher {self.number} is told that it is deleted", sandbox)
        self.deleted.add(sandbox)
        if left:
            self.tally.broken(f"told deleted while there is still: {left}", sandbox)

    def check(self) -> None:
        """Whoever watched while a sandbox went was told."""
        for sandbox in self.sandboxes.every():
            if (
                sandbox.deleted
                and sandbox.gone is not None
                and sandbox.id not in self.deleted
            ):
                begun, gone = sandbox.gone
                if any(a < begun and gone + 2 < b for a, b in self.streams):
                    self.tally.broken(
                        f"watcher {self.number} was never told of its end", sandbox.id
                    )


def traces(sandbox: str, state: Path) -> list[str]:
    """What there is of one sandbox on this host."""
    found = [
        str(path)
        for path in (state / "sandboxes").glob(f"{sandbox}*")
        if path.name == sandbox
    ]
    domain = domain_name(INSTANCE, sandbox)
    found += [
        f"QEMU {process.pid}"
        for process in machines(INSTANCE)
        if process.domain == domain
    ]
    for alias in Path("/sys/class/net").glob("*/ifalias"):
        with contextlib.suppress(OSError):
            if alias.read_text().strip() == mark(INSTANCE, sandbox):
                found.append(f"tap {alias.parent.name}")
    return found
