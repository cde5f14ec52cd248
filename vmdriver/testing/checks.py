"""A whole life of a sandbox, with a kill or a refusal at each step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver.errors import DriverError
from vmdriver.extension import CallPoint, Extension, SandboxView
from vmdriver.testing.stage import Killed, Stage, sandbox


@dataclass(frozen=True)
class Lived:
    """What a whole life showed."""

    environment: Mapping[str, str]
    """What the extensions set in spec.environment."""
    labels: Mapping[str, str]
    changes: Mapping[tuple[str, str], Any]
    """Every change of the request by (field, key)."""
    problems: Sequence[str]
    """Errors of phases that only report, and of undos."""


async def _life(stage: Stage, view: SandboxView) -> None:
    await stage.create(view)
    await stage.ready()
    await stage.stop()
    await stage.start()
    await stage.ready()
    await stage.delete()


async def lived(
    make: Callable[[], Extension],
    directory: Path,
    *,
    view: SandboxView | None = None,
    config: Mapping[str, Any] | None = None,
) -> Lived:
    """One sandbox's whole life. DriverError where the extension refuses; AssertionError if it
    still holds something at the end.
    """
    extension = make()
    stage = Stage([extension], directory, config={extension.name: config or {}})
    try:
        await _life(stage, view or sandbox())
        assert not stage.held, f"still held after the delete: {stage.held}"
    finally:
        stage.close()
    changes = stage.request
    return Lived(
        {key: v for (f, key), v in changes.items() if f == "spec.environment"},
        {key: v for (f, key), v in changes.items() if f == "template.labels"},
        changes,
        tuple(stage.problems),
    )


async def check_every_failure(
    make: Callable[[], Extension],
    directory: Path,
    left: Callable[[], Collection[object]],
    *,
    view: SandboxView | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """A create in which another extension refuses, in one phase after the other, and one that the
    driver behind refuses: what this one has allocated by then must be gone. `left`: as above.

    AssertionError that names the phase when something is left, or held.
    """
    extension = make()
    tables = {extension.name: config or {}}
    for phase in (*_REFUSING, None):
        others = [_refuser(phase)] if phase else []
        own = directory / f"failure-{phase or 'base'}"
        stage = Stage([make(), *others], own, config=tables)
        try:
            await stage.create(view, base_refuses=phase is None)
        except DriverError:
            pass
        else:
            raise AssertionError(f"{phase}: nothing was refused")
        finally:
            stage.close()
        where = f"{phase} refused" if phase else "the base driver refused"
        assert not stage.held, f"{where}: still held: {stage.held}"
        found = left()
        assert not found, f"{where}: left over: {found}"


_REFUSING = (
    CallPoint.VALIDATE_REQUEST,
    CallPoint.PREPARE_PLAN,
    CallPoint.BEFORE_CREATE,
    CallPoint.BEFORE_START,
)


def _refuser(phase: CallPoint) -> Extension:
    async def refuse(*_: Any) -> None:
        raise DriverError(f"refused in {phase.value}, as the test wants it")

    body = {phase.value: refuse, "name": "refuser"}
    made: Extension = type("Refuser", (Extension,), body)()
    return made


async def check_every_kill(
    make: Callable[[], Extension],
    directory: Path,
    left: Callable[[], Collection[object]],
    *,
    view: SandboxView | None = None,
    config: Mapping[str, Any] | None = None,
) -> int:
    """The same life, killed at one step after the other, each time taken up by another process
    and deleted there. `left`: what is left of the extension in its outside world.

    AssertionError that names the step when something is left, or held. The number of steps.
    """
    number = 0
    while True:
        number += 1
        own = directory / f"kill-{number}"
        name = make().name
        stage = Stage([make()], own, config={name: config or {}}, kill_at=number)
        try:
            await _life(stage, view or sandbox())
        except Killed:
            stage = stage.restarted([make()])
            await _finish(stage)
        else:
            stage.close()
            return number - 1
        stage.close()
        assert not stage.held, f"killed at step {number}: still held: {stage.held}"
        found = left()
        assert not found, f"killed at step {number}: left over: {found}"


async def _finish(stage: Stage) -> None:
    if stage._subject is None:  # noqa: SLF001 - killed before there was one
        return
    await stage.recover()
    if stage.in_base:
        await stage.delete()
