"""The kit for authors of extensions: it passes what is right and catches what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmdriver.errors import DriverError, Exhausted
from vmdriver.extension import CallPoint, Context, Draft, Extension, Hold, Until
from vmdriver.extensions.gpu_claim import GpuClaim
from vmdriver.testing import (
    Killed,
    Stage,
    check_every_failure,
    check_every_kill,
    lived,
    sandbox,
)


class Licence(Extension):
    """As it should be; the tests' mutants break one thing each."""

    name = "licence"

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    async def before_create(self, context: Context, draft: Draft) -> None:
        await context.hold("seat", context.sandbox.id)
        self.taken.add(context.sandbox.id)
        draft.set_environment("LICENCE", "seat-1")

    async def before_start(self, context: Context) -> None:
        await context.hold("port", "p", until=Until.STOP)
        self.taken.add("p")

    async def undo(self, context: Context, hold: Hold) -> None:
        self.taken.discard(hold.name)


class ActsFirst(Licence):
    async def before_create(self, context: Context, draft: Draft) -> None:
        self.taken.add(context.sandbox.id)
        await context.hold("seat", context.sandbox.id)


class Forgets(Licence):
    async def undo(self, context: Context, hold: Hold) -> None:
        pass


class NotIdempotent(Licence):
    async def undo(self, context: Context, hold: Hold) -> None:
        self.taken.remove(hold.name)


async def test_a_right_extension_passes(tmp_path: Path) -> None:
    taken: set[str] = set()
    seen = await lived(lambda: Licence(taken), tmp_path / "a")
    assert seen.environment == {"LICENCE": "seat-1"}
    assert not seen.problems
    assert taken == set()
    steps = await check_every_kill(
        lambda: Licence(taken), tmp_path / "b", lambda: taken
    )
    assert steps > 20
    await check_every_failure(lambda: Licence(taken), tmp_path / "c", lambda: taken)


@pytest.mark.parametrize("wrong", [ActsFirst, Forgets, NotIdempotent])
async def test_a_wrong_one_is_caught(tmp_path: Path, wrong: type[Licence]) -> None:
    taken: set[str] = set()
    with pytest.raises(AssertionError, match="killed at step"):
        await check_every_kill(lambda: wrong(taken), tmp_path, lambda: taken)
    taken.clear()
    if wrong is Forgets:
        with pytest.raises(AssertionError, match="before_create refused: left over"):
            await check_every_failure(
                lambda: wrong(taken), tmp_path / "f", lambda: taken
            )


async def test_a_refusal_gives_everything_back(tmp_path: Path) -> None:
    taken: set[str] = set()
    stage = Stage([Licence(taken)], tmp_path)
    with pytest.raises(DriverError, match="as the test wants it"):
        await stage.create(base_refuses=True)
    assert taken == set()
    assert stage.held == []
    await stage.create(sandbox("again"))
    assert [hold.name for hold in stage.held] == ["again", "p"]
    await stage.stop()
    assert taken == {"again"}
    stage.close()


async def test_a_shipped_one_with_its_configuration(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    claims.mkdir()
    config: dict[str, Any] = {"directory": str(claims), "devices": ["a"]}
    view = sandbox(labels={"openshell.io/extension.gpu-claim": "on"})
    await check_every_kill(
        GpuClaim,
        tmp_path / "kills",
        lambda: list(claims.iterdir()),
        view=view,
        config=config,
    )
    (claims / "a").write_text("somebody else")
    with pytest.raises(Exhausted):
        await lived(GpuClaim, tmp_path / "full", view=view, config=config)


async def test_a_driver_without_a_required_phase_refuses(tmp_path: Path) -> None:
    class Needs(Licence):
        required = frozenset({CallPoint.RECONCILE})

    stage = Stage([Needs(set())], tmp_path, phases=frozenset({CallPoint.BEFORE_CREATE}))
    with pytest.raises(DriverError, match="reconcile"):
        await stage.create()
    stage.close()
    assert issubclass(Killed, BaseException)
    assert not issubclass(Killed, Exception)


def test_a_new_extension_has_a_test_that_passes(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "vmdriver")
    command = [program, "extensions", "new", "seat-claims", "--in", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 3
    package = tmp_path / "seat-claims"
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "2 passed" in tested.stdout, tested.stdout + tested.stderr
    linted = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(package / "seat_claims.py")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout
    for wrong in ("Seats", "../x", "a--b", ""):
        command[3] = wrong
        refused = subprocess.run(command, check=False, capture_output=True, text=True)
        assert refused.returncode == 2
