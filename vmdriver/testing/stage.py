"""A driver in memory, for the tests of extensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmdriver.errors import DriverError
from vmdriver.extension import CallPoint, Draft, Extension, Hold, SandboxView
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.extending.by_phases import ByPhases
from vmdriver.lifecycle.extending.notes import hold_of, holds_of
from vmdriver.lifecycle.extending.runner import Runner
from vmdriver.lifecycle.extending.subject import Subject
from vmdriver.model.spec import Resources
from vmdriver.storage.sandboxes.journal import FileJournal


class Killed(BaseException):
    """The process ends here. Not an Exception: an extension must not be able to handle it."""


def sandbox(
    sandbox_id: str = "sandbox-1",
    *,
    name: str = "box",
    workspace: str = "default",
    image: str = "example.org/image:1",
    labels: Mapping[str, str] | None = None,
    memory_mib: int | None = None,
) -> SandboxView:
    """A sandbox as extensions see it."""
    resources = Resources(memory_mib=memory_mib)
    return SandboxView(
        sandbox_id, name, workspace, image, dict(labels or {}), resources
    )


class Stage:
    """A driver with one sandbox, in memory but for its ledger, which is below `directory`.

    `phases`: those that the driver has. `config`: the operator's tables by extension.
    """

    def __init__(
        self,
        extensions: Sequence[Extension],
        directory: Path,
        *,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        phases: frozenset[CallPoint] = frozenset(CallPoint),
        kill_at: int = 0,
    ) -> None:
        self._directory, self._config, self._phases = directory, config or {}, phases
        self._threads = Threads("stage", 1)
        self._kill_at, self.steps = kill_at, 0
        self._runner = Runner(
            [ByPhases(extension) for extension in extensions],
            self._config,
            self._own,
            subject_of=lambda subject, _ledger, _trace: subject,
            supported=phases,
            names=lambda: ("stage", ""),
            tell=lambda _id, problem: self.problems.append(problem),
        )
        self._subject: Subject | None = None
        self.request: dict[tuple[str, str], Any] = {}
        """Changes of the request by (field, key); the key is "" for single fields."""
        self.problems: list[str] = []
        self.in_base = False
        """Whether the driver behind has the sandbox."""
        self.up = False

    def step(self) -> None:
        """A place where the process may be killed. Killed when it is this one's turn."""
        self.steps += 1
        if self.steps == self._kill_at:
            raise Killed

    async def _crash_point(self, crash_point: str) -> None:  # noqa: ARG002 - every one counts
        self.step()

    async def _own(self, sandbox_id: str, name: str) -> Path:
        path = self._directory / sandbox_id / "extensions" / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _ledger(self, sandbox_id: str) -> Ledger:
        path = self._directory / sandbox_id / "ledger.jsonl"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Ledger(FileJournal(path, self._threads), self._crash_point)

    @property
    def subject(self) -> Subject:
        """The sandbox. LookupError before `create` or `recover`."""
        if self._subject is None:
            raise LookupError("there is no sandbox yet: create one")
        return self._subject

    @property
    def held(self) -> list[Hold]:
        """What extensions hold now, oldest first."""
        ledger = self.subject.ledger
        return [hold_of(held) for held in holds_of(ledger)] if ledger else []

    # --- what a driver does

    async def validate(self, view: SandboxView) -> None:
        """As when somebody only asks. DriverError."""
        subject = Subject(view, self._runner.activate(view.labels, {}))
        draft = Draft({})
        await self._runner.ask(CallPoint.VALIDATE_REQUEST, subject)
        await self._runner.ask(CallPoint.PREPARE_PLAN, subject, draft=draft)

    async def create(
        self, view: SandboxView | None = None, *, base_refuses: bool = False
    ) -> None:
        """Up to the sandbox's acceptance by the driver behind. DriverError, and then
        everything is given back.
        """
        view = view or sandbox()
        activation = self._runner.activate(view.labels, {})
        self._subject = Subject(view, activation, self._ledger(view.id))
        draft, ask = Draft({}), self._runner.ask
        try:
            await ask(CallPoint.VALIDATE_REQUEST, self.subject)
            await ask(CallPoint.PREPARE_PLAN, self.subject, draft=draft)
            await ask(CallPoint.BEFORE_CREATE, self.subject, draft=draft)
            self.up = True
            await ask(CallPoint.BEFORE_START, self.subject)
            self.step()
            _ask_the_base(refuses=base_refuses)
        except DriverError:
            await self._ended(CallPoint.ON_CREATE_FAILED)
            raise
        self.in_base = True
        self.request = {(c.field, c.key): c.value for c in draft.changes()}
        self.step()
        await self._tell(CallPoint.AFTER_CREATE)

    async def ready(self) -> None:
        """The driver behind says Ready."""
        await self._tell(CallPoint.AFTER_READY)

    async def stop(self) -> None:
        """DriverError when an extension does not let it."""
        await self._runner.ask(CallPoint.BEFORE_STOP, self.subject)
        await self._run_ended()

    async def start(self) -> None:
        """Again, after a stop. DriverError, and then what the run held is given back."""
        self.up = True
        try:
            await self._runner.ask(CallPoint.BEFORE_START, self.subject)
        except DriverError:
            await self._run_ended()
            raise

    async def delete(self) -> None:
        """DriverError when an extension does not let it."""
        await self._runner.ask(CallPoint.BEFORE_DELETE, self.subject)
        self.in_base = False
        self.step()
        await self._ended(CallPoint.AFTER_DELETE)

    def restarted(self, extensions: Sequence[Extension]) -> Stage:
        """Another process on the same disk; call `recover` then."""
        self._threads.close()
        again = Stage(
            extensions, self._directory, config=self._config, phases=self._phases
        )
        again.in_base, again.up = self.in_base, self.up
        if self._subject is not None:
            ledger = again._ledger(self._subject.sandbox.id)
            again._subject = Subject(
                self._subject.sandbox, self._subject.activation, ledger
            )
        return again

    async def recover(self) -> None:
        """As a driver does when it starts: what it is sure to have goes on, the rest ends."""
        if self._subject is None:
            return
        if self.in_base:
            await self._tell(CallPoint.RECONCILE)
        else:
            await self._ended(CallPoint.ON_CREATE_FAILED)

    def close(self) -> None:
        """Give the thread back."""
        self._threads.close()

    async def _tell(self, phase: CallPoint) -> None:
        await self._runner.report(phase, self.subject)

    async def _give_back(self, scope: Scope | None) -> None:
        subject = self.subject
        if subject.ledger is not None:
            found = await self._runner.give_back(subject, subject.ledger, scope)
            self.problems += found

    async def _run_ended(self) -> None:
        if self.up:
            await self._tell(CallPoint.AFTER_STOP)
            await self._give_back(Scope.RUNTIME)
            self.up = False

    async def _ended(self, phase: CallPoint) -> None:
        await self._run_ended()
        await self._tell(phase)
        await self._give_back(None)


def _ask_the_base(*, refuses: bool) -> None:
    if refuses:
        raise DriverError("the base driver refuses, as the test wants it")
