"""After the storm: does everything hold that was promised, and does nothing remain when all is deleted?"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.fakes.gateway import Gateway
from tests.fakes.leftovers import leftovers
from tests.storm.callers import DELETE_BOUND_S, Acts
from tests.storm.chains import check_disks, check_layers, check_memories
from tests.storm.processes import left
from tests.storm.promises import Promise, Sandbox, Sandboxes, Wish
from tests.storm.stage import INSTANCE, Keeper
from tests.storm.tally import Tally
from tests.system.workloads import check_chains
from vmdriver._proto import admin_pb2
from vmdriver._proto import compute_driver_pb2 as pb

SETTLE_S = 150.0
WAYS = {
    "Running": Wish.RUNNING,
    "Stopped": Wish.STOPPED,
    "Suspended": Wish.SUSPENDED,
    "": Wish.GONE,
}
ON_THE_WAY = {"Starting", "Deleting", "?"}


@dataclass
class Verifier:
    """Faults have ended, and callers too."""

    keeper: Keeper
    gateway: Gateway
    sandboxes: Sandboxes
    tally: Tally
    acts: Acts
    harmful: bool
    """The disk was filled or helper programs were killed: any sandbox may have failed."""
    logs: Path

    def everything(self) -> None:
        sandboxes = [
            sandbox
            for sandbox in self.sandboxes.every()
            if sandbox.may != {Wish.GONE} or sandbox.created
        ]
        self._unknown(sandboxes)
        self._each(self._settle, sandboxes)
        check_memories(self.keeper.state, self.tally)
        check_disks(self.keeper.state, self.tally)
        living = [sandbox for sandbox in sandboxes if self.acts.look(sandbox)]
        self._each(self._holds, living)
        self._each(self._stops, living)
        check_layers(self.keeper.state, self.tally)
        if self.tally.violations:
            keep(self.keeper.state, self.logs)
        self._each(self._goes, living)
        self._nothing_left()

    def _each(self, work: Callable[[Sandbox], None], sandboxes: list[Sandbox]) -> None:
        def tried(sandbox: Sandbox) -> None:
            try:
                work(sandbox)
            except (grpc.RpcError, TimeoutError, AssertionError) as error:
                self.tally.broken(
                    f"{work.__name__.strip('_')}: {str(error)[:600]}", sandbox.id
                )

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(tried, sandboxes))

    def _unknown(self, sandboxes: list[Sandbox]) -> None:
        known = {sandbox.id for sandbox in sandboxes}
        request = pb.ListSandboxesRequest()
        for listed in self.keeper.stub.ListSandboxes(request, timeout=60).sandboxes:
            if listed.id not in known:
                self.tally.broken("a sandbox that nobody asked for", listed.id)

    def _wait(
        self,
        sandbox: Sandbox,
        wanted: Callable[[str], bool],
        timeout_s: float = SETTLE_S,
    ) -> str:
        deadline = time.monotonic() + timeout_s
        while not wanted(reason := self.acts.look(sandbox)):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"it is {self._condition(sandbox)} after {timeout_s:g} s"
                )
            time.sleep(0.1)
        return reason

    def _condition(self, sandbox: Sandbox) -> str:
        try:
            request = pb.GetSandboxRequest(sandbox_id=sandbox.id)
            found = self.keeper.stub.GetSandbox(request, timeout=20).sandbox
        except grpc.RpcError as error:
            return error.code().name
        first = found.status.conditions[0]
        return f"{first.type}={first.status}/{first.reason}: {first.message[:300]}"

    def _settle(self, sandbox: Sandbox) -> None:
        """What is asked for is so."""
        reason = self._wait(sandbox, lambda now: now not in ON_THE_WAY)
        found = WAYS.get(reason)
        allowed = "/".join(sorted(sandbox.may))
        if found is not None and found not in sandbox.may:
            self.tally.broken(
                f"it is {found}, and what was told allows {allowed}", sandbox.id
            )
        elif found is None and Wish.RUNNING not in sandbox.may:
            self.tally.broken(
                f"{self._condition(sandbox)}, and what was told allows {allowed}",
                sandbox.id,
            )
        elif found is None and not (sandbox.faults or self.harmful):
            self.tally.broken(
                f"it failed without a cause: {self._condition(sandbox)}", sandbox.id
            )

    def _holds(self, sandbox: Sandbox) -> None:
        """It comes up with everything that was promised, and so does each snapshot."""
        reason = self.acts.look(sandbox)
        if reason != "Suspended" or not self._kept(sandbox):
            sandbox.forgets_memory() if reason != "Running" else None
        if reason != "Running":
            request = pb.StartSandboxRequest(sandbox_id=sandbox.id)
            self.keeper.stub.StartSandbox(request, timeout=60)
        self._wait(sandbox, lambda now: now == "Running")
        self._has(sandbox, sandbox.holds, "")
        for name, kept in sorted(sandbox.snapshots.items()):
            if kept.certain:
                request = admin_pb2.RestoreSnapshotRequest(
                    sandbox=sandbox.id, name=name
                )
                list(self.keeper.admin.RestoreSnapshot(request, timeout=SETTLE_S))
                self._wait(sandbox, lambda now: now == "Running")
                self._has(sandbox, kept.promise, f"returned to {name}: ")

    @staticmethod
    def _kept(sandbox: Sandbox) -> bool:
        return sandbox.may == {Wish.SUSPENDED} or Wish.SUSPENDED in sandbox.may

    def _has(self, sandbox: Sandbox, promise: Promise, when: str) -> None:
        for directory, numbers in (
            ("/sandbox/files", promise.files),
            ("/dev/shm", promise.memory),
        ):
            listed = self.gateway.shell(
                sandbox.id, f"ls {directory}; true", timeout_s=SETTLE_S
            )
            found = {int(name) for name in listed.split() if name.isdigit()}
            if missing := sorted(numbers - found):
                self.tally.broken(
                    f"{when}{directory} has lost {missing}; it has {sorted(found)}",
                    sandbox.id,
                )
        # After a boot the workload needs a moment more than the supervisor.
        script = (
            "for i in $(seq 600); do [ -s /sandbox/chain ] && break; sleep 0.1; done"
        )
        text = self.gateway.shell(
            sandbox.id, f"{script}; cat /sandbox/chain", timeout_s=SETTLE_S
        )
        lengths = check_chains(text)
        self.tally.note(
            f"{when}holds {len(promise.files)} files, {len(promise.memory)} in memory, {lengths}",
            sandbox.id,
        )

    def _stops(self, sandbox: Sandbox) -> None:
        self.acts.stop(sandbox)
        self._wait(sandbox, lambda now: now in {"Stopped", "Suspended"})

    def _goes(self, sandbox: Sandbox) -> None:
        self.acts.delete(sandbox)
        self._wait(sandbox, lambda now: now == "", DELETE_BOUND_S)

    def _nothing_left(self) -> None:
        """Templates and what nobody uses are removed; the driver ends; only caches remain."""
        admin, state = self.keeper.admin, self.keeper.state
        for template in admin.ListTemplates(
            admin_pb2.ListTemplatesRequest(), timeout=60
        ).templates:
            admin.DeleteTemplate(
                admin_pb2.DeleteTemplateRequest(key=template.key), timeout=60
            )
        self.keeper.end(signal.SIGTERM)
        deadline = time.monotonic() + 3  # a process that was killed takes a moment
        while (found := self._leftovers(state)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for item in found:
            self.tally.broken(f"left over: {item}")

    def _leftovers(self, state: Path) -> list[str]:
        links = [
            str(link)
            for link in Path("/run/vmdriver").glob("*")
            if str(state) in str(link.resolve())
        ]
        found = left(INSTANCE, [str(state), *links])
        found += [
            item for item in leftovers(INSTANCE, state) if not item.startswith("QEMU")
        ]
        return found + files_left(state)


def files_left(state: Path) -> list[str]:
    """Files that belong to a sandbox, a template or work under way."""
    found: list[str] = []
    for folder in ("layers", "templates", "warm", "probe"):
        found += [str(path.relative_to(state)) for path in (state / folder).glob("*")]
    for path in state.rglob("*"):
        name = path.name
        unfinished = name.endswith((".part", ".new", ".tmp")) or name.startswith(
            (".tmp", "tmp")
        )
        if unfinished and "libvirt" not in path.relative_to(state).parts:
            found.append(str(path.relative_to(state)))
    run = state / "libvirt" / "run" / "qemu"
    return found + [str(path.relative_to(state)) for path in run.glob("vmdriver-*")]


def keep(state: Path, logs: Path) -> None:
    """Records, ledgers and consoles of what is there now, for whoever looks for a cause."""

    def bulky(directory: str, names: list[str]) -> set[str]:
        paths = [Path(directory) / name for name in names]
        return {p.name for p in paths if p.is_file() and p.stat().st_size > 2**20}

    with contextlib.suppress(OSError):  # what can be copied is
        shutil.copytree(
            state / "sandboxes", logs / "sandboxes", ignore=bulky, dirs_exist_ok=True
        )
