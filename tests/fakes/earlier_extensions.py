"""The extensions that take part in the sandboxes of tests/fixtures/state-0.1.0, as they are today. What they have
outside, and what they are told, are lines of a file there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vmdriver.errors import Refused
from vmdriver.extension import Extension, LifecycleExtension, OnRequest, Until


class Outside:
    """`stuck`: nothing can be given back."""

    def __init__(self, path: Path) -> None:
        self._path, self.stuck = path, False
        self._known = len(path.read_text().splitlines())

    def note(self, *words: object) -> None:
        with self._path.open("a") as file:
            file.write(" ".join(str(word) for word in words) + "\n")

    def news(self) -> list[str]:
        """What was noted since the earlier driver."""
        return self._path.read_text().splitlines()[self._known :]

    def taken(self) -> set[str]:
        """What is not given back. The earlier driver may have been killed after it gave something back."""
        taken: set[str] = set()
        for line in self._path.read_text().splitlines():
            if line[0] == "+":
                taken.add(line[1:])
            elif line[0] == "-":
                taken.discard(line[1:])
        return taken


class Parameters(BaseModel):
    size: int = 1


class Follower(Extension):
    """Follows phases."""

    name = "follower"
    activation = OnRequest("follower")
    parameters = Parameters

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    async def before_start(self, context: Any) -> None:
        name = context.sandbox.id
        await context.hold("port", name, {"restore": context.restore}, Until.STOP)
        self._outside.note(f"+port {name}")

    async def reconcile(self, context: Any) -> None:
        note = (context.state_dir / "note").read_text()
        assert note == f"of {context.sandbox.id}\n"
        held = sorted(f"{h.kind}:{h.data}" for h in context.held)
        self._outside.note("reconcile", context.sandbox.id, *held)

    async def on_create_failed(self, context: Any) -> None:
        self._outside.note("create-failed", context.sandbox.id)

    async def after_stop(self, context: Any) -> None:
        self._outside.note("after-stop", context.sandbox.id)

    async def after_delete(self, context: Any) -> None:
        self._outside.note("after-delete", context.sandbox.id)

    async def undo(self, context: Any, hold: Any) -> None:
        assert context.parameters.size == 3
        if self._outside.stuck:
            raise Refused("the other side does not answer", reason="OtherSideAway")
        self._outside.note(f"-{hold.kind} {hold.name}")


class Recorder(LifecycleExtension):
    """Follows hooks."""

    name = "recorder"
    activation = OnRequest("recorder")

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    async def configure_launch(self, context: Any, draft: Any) -> None:
        ticket = context.saved.get("ticket", 0) + 1
        await context.save({"ticket": ticket})
        self._outside.note(f"+ticket {context.sandbox.id}")
        draft.set_environment("TICKET", str(ticket))

    async def before_restore(self, context: Any, kind: Any) -> None:
        self._outside.note(kind.value, context.sandbox.id, context.saved)

    async def after_launch_failed(self, context: Any, reason: Any) -> None:
        self._outside.note(f"-ticket {context.sandbox.id}")
        self._outside.note(reason.value, context.sandbox.id, context.saved)

    async def after_delete(self, context: Any) -> None:
        self._outside.note("deleted", context.sandbox.id, context.saved)
