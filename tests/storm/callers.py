"""Those who ask: each caller takes a sandbox that nobody acts on and does something with it, at random."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import struct_pb2

from tests.fakes.gateway import Gateway
from tests.storm.calls import Answer, Caller
from tests.storm.promises import Kept, Promise, Sandbox, Sandboxes, Wish
from tests.storm.stage import STOP_GRACE_S, Keeper
from tests.storm.tally import Tally
from tests.system.workloads import STORM, command
from vmdriver._proto import admin_pb2
from vmdriver._proto import compute_driver_pb2 as pb

MOST = 5
STOP_BOUND_S, DELETE_BOUND_S = STOP_GRACE_S + 15.0, 30.0
LONGER_S = 90.0
"""Deadline of calls whose own bounds are shorter: a late answer is told from none."""
WRITE = "mkdir -p /sandbox/files && echo {n} > /dev/shm/{n} && echo {n} > /sandbox/files/{n} && sync"
_names = itertools.count(1)
_numbers = itertools.count(1)


class Acts:
    """What can be done, and what its answer promises. The box's lock is held."""

    def __init__(
        self,
        keeper: Keeper,
        gateway: Gateway,
        sandboxes: Sandboxes,
        tally: Tally,
        images: list[str],
    ) -> None:
        self.keeper, self.gateway, self.sandboxes, self.tally = (
            keeper,
            gateway,
            sandboxes,
            tally,
        )
        self._images = images
        self._caller = Caller(keeper, tally)

    def warm_up(self) -> None:
        """Several first creates at once; the storm begins when one runs. What it should strike is
        more than the making of the first base disk.
        """
        chances = [random.Random(number) for number in range(3)]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(self.create, chances))
        deadline = time.monotonic() + 180
        while not any(
            self.look(sandbox) == "Running" for sandbox in self.sandboxes.living()
        ):
            if time.monotonic() > deadline:
                raise TimeoutError("no first machine came up")
            time.sleep(0.2)

    def create(self, chance: random.Random) -> None:
        sandbox = Sandbox(f"storm-{next(_names)}", chance.random() < 0.5, {Wish.GONE})
        sandbox.created = self.tally.now()
        config = {"on_stop": "suspend"} if sandbox.suspends else {}
        kind = chance.choice(
            ("create", "create", "create of another shape", "create from a snapshot")
        )
        memory = "144Mi" if kind.endswith("shape") else ""
        holds = Promise()
        if kind == "create from a snapshot":
            if (found := self._any_snapshot(chance)) is None:
                kind = "create"
            else:
                config["from_snapshot"], holds = found
        fields = struct_pb2.Struct()
        fields.update(config)
        template = pb.DriverSandboxTemplate(
            image=chance.choices(self._images, (4, 1))[0],
            driver_config=fields,
            resources=pb.DriverResourceRequirements(memory_limit=memory),
        )
        spec = pb.DriverSandboxSpec(template=template, command=command(STORM))
        asked = pb.DriverSandbox(id=sandbox.id, name=sandbox.id, spec=spec)
        with sandbox.lock:
            self.sandboxes.add(sandbox)
            request = pb.CreateSandboxRequest(sandbox=asked)
            answer = self._call(
                kind,
                sandbox,
                lambda: self.keeper.stub.CreateSandbox(request, timeout=LONGER_S),
            )
            said_no = answer.refused or answer.code in {
                "FAILED_PRECONDITION",
                "RESOURCE_EXHAUSTED",
            }
            if not said_no:
                sandbox.holds = holds
                sandbox.asked({Wish.RUNNING}, certain=answer.ok)

    def _any_snapshot(self, chance: random.Random) -> tuple[str, Promise] | None:
        """SANDBOX/NAME and what its disk has."""
        kept = [
            (f"{sandbox.id}/{name}", Promise(snapshot.promise.files))
            for sandbox in self.sandboxes.living()
            for name, snapshot in list(sandbox.snapshots.items())
        ]
        return chance.choice(kept) if kept else None

    def _call(
        self, action: str, sandbox: Sandbox, work: Callable[[], object]
    ) -> Answer:
        return self._caller.call(action, sandbox.id, work)

    def write(self, sandbox: Sandbox) -> None:
        """A guest writes a number to its memory and to its disk, and tells when it is synced."""
        if Wish.RUNNING not in sandbox.may or time.monotonic() < sandbox.quiet_until:
            return
        if self.look(sandbox) != "Running":
            return
        number, deaths = next(_numbers), sandbox.deaths()
        self.tally.count(self.tally.actions, "write")
        script = WRITE.format(n=number)
        try:
            done = self.gateway.run(sandbox.id, "/bin/sh", "-c", script, timeout_s=10)
        except TimeoutError:
            self.tally.refused("write", "TIMEOUT", "the guest does not answer")
            return
        if done.code == 0:
            sandbox.wrote(number, deaths)
            self.tally.note(f"wrote {number}", sandbox.id)
        else:
            self.tally.refused("write", "FAILED", done.stderr.decode(errors="replace"))

    def stop(self, sandbox: Sandbox) -> set[Wish]:
        request = pb.StopSandboxRequest(sandbox_id=sandbox.id)
        answer = self._call(
            "stop",
            sandbox,
            lambda: self.keeper.stub.StopSandbox(request, timeout=LONGER_S),
        )
        self._within("stop", sandbox, answer, STOP_BOUND_S)
        both = {Wish.STOPPED, Wish.SUSPENDED} if sandbox.suspends else {Wish.STOPPED}
        if answer.refused:
            return set()
        found = self.look(sandbox) if answer.ok and sandbox.suspends else ""
        if found != "Suspended":
            sandbox.forgets_memory()
        wishes = {"Suspended": {Wish.SUSPENDED}, "Stopped": {Wish.STOPPED}}.get(
            found, both
        )
        sandbox.asked(wishes, certain=answer.ok)
        return wishes

    def start(self, sandbox: Sandbox) -> set[Wish]:
        request = pb.StartSandboxRequest(sandbox_id=sandbox.id)
        answer = self._call(
            "start",
            sandbox,
            lambda: self.keeper.stub.StartSandbox(request, timeout=LONGER_S),
        )
        return self._asked(sandbox, answer, Wish.RUNNING)

    def suspend(self, sandbox: Sandbox) -> set[Wish]:
        request = admin_pb2.SuspendRequest(sandbox=sandbox.id)
        answer = self._call(
            "suspend",
            sandbox,
            lambda: list(self.keeper.admin.Suspend(request, timeout=LONGER_S)),
        )
        return self._asked(sandbox, answer, Wish.SUSPENDED)

    def resume(self, sandbox: Sandbox) -> set[Wish]:
        request = admin_pb2.ResumeRequest(sandbox=sandbox.id)
        answer = self._call(
            "resume",
            sandbox,
            lambda: list(self.keeper.admin.Resume(request, timeout=LONGER_S)),
        )
        return self._asked(sandbox, answer, Wish.RUNNING)

    def _asked(self, sandbox: Sandbox, answer: Answer, wish: Wish) -> set[Wish]:
        if answer.refused:
            return set()
        sandbox.asked({wish}, certain=answer.ok)
        return {wish}

    def delete(self, sandbox: Sandbox) -> set[Wish]:
        request = pb.DeleteSandboxRequest(sandbox_id=sandbox.id)
        answer = self._call(
            "delete",
            sandbox,
            lambda: self.keeper.stub.DeleteSandbox(request, timeout=LONGER_S),
        )
        if answer.refused:
            return set()
        known = Wish.GONE not in sandbox.may
        sandbox.asked({Wish.GONE}, certain=answer.ok)
        if answer.ok:
            if known and not answer.value.deleted:
                self.tally.broken("DeleteSandbox says that it is not known", sandbox.id)
            sandbox.was_deleted()
            if answer.value.deleted:  # else it never was: nobody is told of its end
                self._goes(sandbox, answer)
        return {Wish.GONE}

    def _goes(self, sandbox: Sandbox, answer: Answer) -> None:
        """Wait until it is gone, as the gateway does for its event."""
        begun, generation = time.monotonic() - answer.seconds, self.keeper.generation
        while (
            self.look(sandbox) not in {"", "?"} and time.monotonic() - begun < LONGER_S
        ):
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        same = answer.same_driver and generation == self.keeper.generation
        sandbox.gone = (self.tally.now() - seconds, self.tally.now())
        self._within(
            "delete", sandbox, Answer(True, False, seconds, same), DELETE_BOUND_S
        )

    def _within(
        self, what: str, sandbox: Sandbox, answer: Answer, bound_s: float
    ) -> None:
        if not answer.same_driver or not (
            answer.ok or answer.code == "DEADLINE_EXCEEDED"
        ):
            return
        self.tally.took(f"{what} (bound {bound_s:g})", answer.seconds)
        if answer.seconds > bound_s:
            self.tally.broken(
                f"a {what} took {answer.seconds:.1f} s, not {bound_s:g}", sandbox.id
            )

    def look(self, sandbox: Sandbox) -> str:
        """The reason of its condition; "" when it is gone, "?" when nobody answers."""
        request = pb.GetSandboxRequest(sandbox_id=sandbox.id)
        try:
            found = self.keeper.stub.GetSandbox(request, timeout=20)
        except grpc.RpcError as error:
            return "" if error.code() is grpc.StatusCode.NOT_FOUND else "?"
        except ValueError:
            return "?"
        return str(found.sandbox.status.conditions[0].reason)

    def snapshot(self, sandbox: Sandbox, disk_only: bool) -> set[Wish]:
        if len(sandbox.snapshots) >= 3:
            return set()
        name, holds = f"s{next(_numbers)}", sandbox.holds
        promise = Promise(holds.files) if disk_only else holds
        request = admin_pb2.CreateSnapshotRequest(
            sandbox=sandbox.id, name=name, disk_only=disk_only
        )
        kind = "snapshot of the disk" if disk_only else "snapshot"
        answer = self._call(
            kind,
            sandbox,
            lambda: list(self.keeper.admin.CreateSnapshot(request, timeout=LONGER_S)),
        )
        if not answer.refused:
            sandbox.snapshots[name] = Kept(promise, answer.ok)
        return set()

    def go_back(self, sandbox: Sandbox, name: str) -> set[Wish]:
        kept, deaths = sandbox.snapshots[name], sandbox.deaths()
        request = admin_pb2.RestoreSnapshotRequest(sandbox=sandbox.id, name=name)
        answer = self._call(
            "return",
            sandbox,
            lambda: list(self.keeper.admin.RestoreSnapshot(request, timeout=LONGER_S)),
        )
        if answer.refused:
            return set()
        sandbox.returned(kept.promise, deaths, certain=answer.ok)
        sandbox.asked({Wish.RUNNING}, certain=answer.ok)
        if not answer.ok:
            sandbox.quiet_until = time.monotonic() + 15  # it may be returned only now
        return {Wish.RUNNING}

    def remove_snapshot(self, sandbox: Sandbox, name: str) -> None:
        kept = sandbox.snapshots[name]
        was_certain, kept.certain = kept.certain, False
        request = admin_pb2.DeleteSnapshotRequest(sandbox=sandbox.id, name=name)
        answer = self._call(
            "snapshot rm",
            sandbox,
            lambda: self.keeper.admin.DeleteSnapshot(request, timeout=LONGER_S),
        )
        if answer.ok:
            del sandbox.snapshots[name]
        elif answer.code == "NOT_FOUND":
            del sandbox.snapshots[name]
            if was_certain and Wish.GONE not in sandbox.may:
                self.tally.broken(
                    f"snapshot {name} is not known: {answer.text}", sandbox.id
                )

    def remove_template(self, chance: random.Random) -> None:
        admin = self.keeper.admin

        def work() -> None:
            found = admin.ListTemplates(
                admin_pb2.ListTemplatesRequest(), timeout=LONGER_S
            ).templates
            if found:
                request = admin_pb2.DeleteTemplateRequest(
                    key=chance.choice([t.key for t in found])
                )
                admin.DeleteTemplate(request, timeout=LONGER_S)

        self._caller.call("template rm", "", work)

    def collect_images(self) -> None:
        request = admin_pb2.CollectImagesRequest()
        self._caller.call(
            "images gc",
            "",
            lambda: self.keeper.admin.CollectImages(request, timeout=LONGER_S),
        )

    def race(self, sandbox: Sandbox, first: str, second: str) -> None:
        """Two calls at once: either may have been the last."""
        before = set(sandbox.may)
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(getattr(self, name), sandbox) for name in (first, second)
            ]
            wishes = set().union(*(future.result() for future in asked))
        if not sandbox.deleted and wishes:
            sandbox.asked(wishes | before, certain=True)
        sandbox.forgets_memory()


RACES = [
    ("delete", "stop"),
    ("delete", "start"),
    ("delete", "suspend"),
    ("stop", "start"),
    ("suspend", "stop"),
    ("resume", "stop"),
    ("start", "start"),
]


class Crowd:
    """Several callers at once, each with a random generator of its own."""

    def __init__(self, acts: Acts, ended: threading.Event) -> None:
        self._acts, self._ended = acts, ended

    def threads(self, seed: int, count: int) -> list[threading.Thread]:
        return [
            threading.Thread(
                target=self._play,
                args=(f"{seed} caller {number}",),
                name=f"caller {number}",
            )
            for number in range(count)
        ]

    def _play(self, seed: str) -> None:
        chance = random.Random(seed)
        while not self._ended.wait(chance.uniform(0.05, 0.6)):
            try:
                self._turn(chance)
            except Exception as error:
                self._acts.tally.broken(f"the storm's own caller broke: {error!r}")
                raise

    def _turn(self, chance: random.Random) -> None:
        acts, living = self._acts, self._acts.sandboxes.living()
        if not acts.keeper.answers and chance.random() < 0.9:
            return  # nobody is there: most wait
        if len(living) < 3 or (len(living) < MOST and chance.random() < 0.15):
            acts.create(chance)
            return
        if chance.random() < 0.06:
            chance.choice((acts.collect_images, lambda: acts.remove_template(chance)))()
            return
        sandbox = chance.choice(living)
        if not sandbox.lock.acquire(blocking=False):
            return
        try:
            if sandbox.may != {Wish.GONE}:
                acts.write(sandbox)
                self._act(sandbox, chance)
        finally:
            sandbox.lock.release()

    def _act(self, sandbox: Sandbox, chance: random.Random) -> None:
        acts = self._acts
        kinds: dict[str, tuple[int, Callable[[], object]]] = {
            "write": (6, lambda: acts.write(sandbox)),
            "stop": (2, lambda: acts.stop(sandbox)),
            "start": (4, lambda: acts.start(sandbox)),
            "suspend": (2, lambda: acts.suspend(sandbox)),
            "resume": (4, lambda: acts.resume(sandbox)),
            "snapshot": (2, lambda: acts.snapshot(sandbox, disk_only=False)),
            "disk": (1, lambda: acts.snapshot(sandbox, disk_only=True)),
            "delete": (1, lambda: acts.delete(sandbox)),
            "race": (1, lambda: acts.race(sandbox, *chance.choice(RACES))),
        }
        if sandbox.snapshots:
            name = chance.choice(sorted(sandbox.snapshots))
            kinds["return"] = (2, lambda: acts.go_back(sandbox, name))
            kinds["remove"] = (1, lambda: acts.remove_snapshot(sandbox, name))
        weights = [weight for weight, _ in kinds.values()]
        chance.choices([work for _, work in kinds.values()], weights)[0]()
