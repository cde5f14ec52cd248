"""The sandboxes of this driver, and what is known of all of them together."""

from __future__ import annotations

from collections.abc import Callable

from vmdriver.errors import InvalidRequest, NotFound, Refused
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.resource import VOLUMES, VOLUMES_BACK
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.model.condition import SandboxStatus
from vmdriver.model.ids import check_sandbox_id
from vmdriver.model.phase import Intent
from vmdriver.model.record import SandboxRecord
from vmdriver.model.set_aside import SetAside


class Sandboxes:
    """By id. `workers` are the accepted ones, and those whose create failed and left something
    that is being given back; `pending` are just being accepted; `set_aside` are those that cannot
    be read.
    """

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.pending: dict[str, SandboxRecord] = {}
        self.set_aside: dict[str, SetAside] = {}
        self.complete = True
        """False where the place of all records was lost: there may be more of them."""
        self._claims: list[Callable[[], set[str]]] = []

    def claim(self, layers: Callable[[], set[str]]) -> None:
        """From now on these layers, asked for anew each time, are needed by what is no sandbox."""
        self._claims.append(layers)

    def records(self) -> list[SandboxRecord]:
        """Of every sandbox, those among them that are just being accepted."""
        return [w.sandbox.record for w in self.workers.values()] + list(
            self.pending.values()
        )

    def others(self, sandbox_id: str) -> int:
        """How many there are besides that one, those among them that are just being accepted."""
        both = self.workers, self.pending
        return sum(len(each) - (sandbox_id in each) for each in both)

    def layers_of_others(self, sandbox_id: str) -> set[str]:
        """Every layer that somebody else than this sandbox needs."""
        found = self.layers_of_unread(but=sandbox_id)
        for record in self.needing_layers():
            if record.id != sandbox_id:
                found.update(record.layers, *(e.layers for e in record.snapshots))
        return found.union(*(layers() for layers in self._claims))

    def layers_of_unread(self, but: str = "") -> set[str]:
        """Every root disk layer that one which cannot be read, other than that one, may need."""
        unread = self.set_aside.values()
        return set().union(*(aside.layers for aside in unread if aside.id != but))

    def needing_layers(self) -> list[SandboxRecord]:
        """Of every sandbox but those that go and whose machine has gone already: where the last
        that stand on a layer go at once, each would leave it to the other.
        """
        gone, kept = set[str](), list[SandboxRecord]()
        for sandbox_id, worker in self.workers.items():
            sandbox = worker.sandbox
            going = sandbox.record.intent is Intent.DELETED
            if going and sandbox.ledger.get(MACHINE) is None:
                gone.add(sandbox_id)
            else:
                kept.append(sandbox.record)
        return kept + [r for name, r in self.pending.items() if name not in gone]

    def holds_volume(self, sandbox_id: str, volume_id: str) -> bool:
        """Whether it has that volume, by its ledger; one that cannot be read may."""
        worker = self.workers.get(sandbox_id)
        if worker is None:
            return sandbox_id in self.set_aside or not self.complete
        entries = map(worker.sandbox.ledger.get, (VOLUMES, VOLUMES_BACK))
        ids = [str(held.data["ids"]).split() for held in entries if held is not None]
        return any(volume_id in each for each in ids)

    def tell_problem(self, sandbox_id: str, problem: str) -> None:
        """Show what went wrong in an extension."""
        worker = self.workers.get(sandbox_id)
        if worker is not None:
            worker.sandbox.tell("ExtensionFailed", problem, warn=True)

    def accepted(self) -> list[Worker]:
        """Those that the gateway knows of."""
        return [
            w for w in self.workers.values() if w.sandbox.record.extensions.accepted
        ]

    def staying(self) -> list[SandboxRecord]:
        """Of every accepted sandbox that is not going, oldest first."""
        records = (worker.sandbox.record for worker in self.accepted())
        kept = (r for r in records if r.intent is not Intent.DELETED)
        return sorted(kept, key=lambda record: record.created_at)

    def host_snapshots(self) -> tuple[int, int]:
        """Number and bytes of every sandbox's snapshots."""
        entries = [e for record in self.records() for e in record.snapshots]
        return len(entries), sum(entry.stored_bytes for entry in entries)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone."""
        self.workers.pop(sandbox_id, None)

    def statuses(self) -> list[SandboxStatus]:
        """Every sandbox as it is shown, sorted by name, then id."""
        shown = [worker.sandbox.status for worker in self.accepted()]
        shown += [aside.status for aside in self.set_aside.values()]
        return sorted(shown, key=lambda s: (s.name, s.id))

    def find(self, sandbox_id: str, name: str) -> Worker:
        """By id, which must exist, else by name. InvalidRequest, NotFound, Refused if
        the name is not unique, or the sandbox cannot be read.
        """
        found = self.look_up(sandbox_id, name)
        if isinstance(found, SetAside):
            raise found.refusal()
        return found

    def look_up(self, sandbox_id: str, name: str) -> Worker | SetAside:
        """The same, those among them that cannot be read."""
        if sandbox_id:
            known = self.workers.get(check_sandbox_id(sandbox_id, "sandbox_id"))
            if known is not None and known.sandbox.record.extensions.accepted:
                return known
            aside = self.set_aside.get(sandbox_id)
            if aside is None:
                raise NotFound(f"sandbox {sandbox_id} is not known")
            return aside
        if not name:
            raise InvalidRequest("sandbox_id", "is empty, and so is sandbox_name")
        matches: list[Worker | SetAside] = [
            worker
            for worker in self.accepted()
            if worker.sandbox.record.spec.name == name
        ]
        matches += [s for s in self.set_aside.values() if s.name == name]
        if not matches:
            raise NotFound(f"no sandbox is named {name!r}")
        if len(matches) > 1:
            raise Refused(
                f"{len(matches)} sandboxes are named {name!r}",
                resolution="ask by sandbox_id",
            )
        return matches[0]
