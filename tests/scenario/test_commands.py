"""An operator's command in a guest, from whoever asks to its exit code, on a fake host."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.programs import FakePrograms
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver.errors import Exhausted, InvalidRequest, NotFound, Refused, TimedOut
from vmdriver.lifecycle.control.commands import Asked, Commands
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.broadcast import Happened
from vmdriver.lifecycle.ports.programs import MOST_SAID, MOST_WORDS, Program, Window
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.record import COMMAND_FOLLOWS

ALLOWED = dataclasses.replace(SETTINGS, operator_exec=True)
WHO = "uid 0, process 7"


class Ends:
    """Whoever asks."""

    def __init__(self, given: bytes = b"", *, over: bool = True) -> None:
        self.input, self.over = bytearray(given), over
        self.out, self.err = b"", b""
        self.takes = MOST_SAID
        self.woken = asyncio.Event()
        self.runs = False
        self.size: Window | None = None

    def given(self) -> tuple[bytes, bool]:
        return bytes(self.input[:5]), self.over and len(self.input) <= 5

    def took(self, count: int) -> None:
        del self.input[:count]

    def room(self) -> int:
        return self.takes

    def said(self, out: bytes, err: bytes) -> None:
        self.out, self.err = self.out + out, self.err + err

    def window(self) -> Window | None:
        size, self.size = self.size, None
        return size

    def begun(self) -> None:
        self.runs = True


@dataclasses.dataclass
class Place:
    driver: FakeDriver
    programs: FakePrograms
    commands: Commands

    def run(self, *words: str, ends: Ends | None = None, **more: Any) -> asyncio.Task[int]:  # fmt: skip
        asked = Asked("s1", Program(words), **more)
        return asyncio.ensure_future(self.commands.run(asked, ends or Ends(), WHO))


async def place(**settings: Any) -> Place:
    world = World()
    driver = FakeDriver(world, settings=dataclasses.replace(ALLOWED, **settings))
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config={"on_stop": "suspend"}), None)
    await driver.settled()
    programs = FakePrograms(world)
    find = Operations(driver.manager).find
    return Place(driver, programs, Commands(find=find, programs=programs))


@pytest.fixture
async def there() -> AsyncIterator[Place]:
    found = await place()
    yield found
    await found.driver.close()


async def test_input_goes_in_output_comes_out_and_the_exit_code_is_its_own(
    there: Place,
) -> None:
    ends = Ends(b"all of it, in small parts")
    assert await there.run("echo", ends=ends) == 0
    assert (ends.out, ends.err, ends.runs) == (b"all of it, in small parts", b"", True)
    assert await there.run("exit", "77") == 77
    assert there.programs.running == {}


async def test_who_runs_what_and_how_it_ended_is_told_and_logged_but_no_output(
    there: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    subscription = there.driver.broadcaster.subscribe()
    await there.run("echo", "a b", ends=Ends(b"secret"))
    subscription.close()
    told = []
    while (notice := await subscription.next()) is not None:
        if isinstance(notice, Happened):
            told.append((notice.event.reason, notice.event.message))
    (reason, first), (again, last) = told
    assert (reason, again) == ("OperatorCommand", "OperatorCommandEnded")
    assert first == f"{WHO} runs a command as sandbox{COMMAND_FOLLOWS} echo 'a b'"
    assert last.startswith(f"the command of {WHO} ended with exit code 0, after ")
    assert first in caplog.text
    assert last in caplog.text
    assert "secret" not in caplog.text


async def test_it_is_off_unless_the_machine_was_started_with_it() -> None:
    found = await place(operator_exec=False)
    with pytest.raises(Refused) as caught:
        await found.run("exit", "0")
    assert caught.value.reason == "CommandsOff"
    assert found.programs.begun == []
    await found.driver.close()


async def test_the_guests_own_word_counts_too(there: Place) -> None:
    there.programs.allowed = False
    with pytest.raises(Refused):
        await there.run("exit", "0")


async def test_what_does_not_run_is_refused(there: Place) -> None:
    with pytest.raises(NotFound):
        await there.commands.run(Asked("no", Program(("exit", "0"))), Ends(), WHO)
    await there.driver.manager.stop("s1", "", {})
    with pytest.raises(Refused) as caught:
        await there.run("exit", "0")
    assert caught.value.reason == "NotRunning"
    assert there.programs.begun == []


@pytest.mark.parametrize("words", [(), ("",), ("a\0b",), ("x" * MOST_WORDS,), ("x",) * 257])  # fmt: skip
async def test_a_command_that_is_none_is_refused(
    there: Place, words: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest):
        await there.run(*words)


async def test_a_client_that_goes_ends_it_in_the_guest(there: Place) -> None:
    running = there.run("wait", ends=Ends(over=False))
    await eventually(lambda: there.programs.running, "it runs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_one_that_takes_too_long_is_ended(there: Place) -> None:
    with pytest.raises(TimedOut, match="took longer than 0.1 s"):
        await there.run("wait", timeout_s=0.1)
    assert there.programs.running == {}


async def test_a_flood_is_taken_only_as_fast_as_somebody_takes_it(there: Place) -> None:
    ends = Ends(over=False)
    ends.takes = 10
    running = there.run("flood", ends=ends)
    await eventually(lambda: len(ends.out) >= 100, "it floods")
    ends.takes = 0
    (program,) = there.programs.running.values()
    seen = len(program.turns)
    await eventually(lambda: len(program.turns) > seen + 3, "it is still asked for")
    before = len(ends.out)
    await eventually(lambda: len(program.turns) > seen + 6, "and again")
    assert len(ends.out) == before
    assert all(turn.room <= 10 for turn in program.turns)
    running.cancel()
    await asyncio.wait({running})


async def test_an_exchange_whose_answer_is_lost_is_done_once(there: Place) -> None:
    lost = iter([True, False] * 100)
    there.programs.silent = lambda _turn: next(lost)
    ends = Ends(b"exactly this")
    assert await there.run("echo", ends=ends) == 0
    assert ends.out == b"exactly this"


async def test_a_guest_that_falls_silent_is_given_up(
    there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, command_silence_s=0.05)
    there.programs.silent = lambda turn: turn.number > 2
    with pytest.raises(TimedOut, match="does not answer any more"):
        await there.run("wait")
    assert len(there.programs.ended) == 1


async def test_nothing_is_asked_of_a_machine_that_stands_still(there: Place) -> None:
    """The fake guest fails for whoever asks it then."""
    ends = Ends(over=False)
    running = there.run("echo", ends=ends)
    await eventually(lambda: ends.runs, "it runs")
    operations = Operations(there.driver.manager)
    for name in ("one", "two", "three"):
        worker = operations.find("s1")
        await operations.create_snapshot(worker, name, disk_only=False)
    ends.input += b"afterwards"
    ends.over = True
    ends.woken.set()
    assert await running == 0
    assert ends.out == b"afterwards"


async def test_a_suspension_ends_it_and_the_machine_that_comes_back_runs_others(
    there: Place,
) -> None:
    running = there.run("wait", ends=Ends(over=False))
    await eventually(lambda: there.programs.running, "it runs")
    operations = Operations(there.driver.manager)
    await operations.suspend(operations.find("s1"))
    with pytest.raises(Refused) as caught:
        await running
    assert caught.value.reason == "NotRunning"
    await operations.resume(operations.find("s1"))
    assert there.driver.phase() is Phase.RUNNING
    assert await there.run("exit", "5") == 5


async def test_a_machine_that_dies_ends_it(there: Place) -> None:
    running = there.run("wait", ends=Ends(over=False))
    await eventually(lambda: there.programs.running, "it runs")
    domain = there.driver.plan().domain
    there.driver.world.domains[domain] = DomainState.STALLED
    await there.driver.manager.delete("s1", "", {})
    with pytest.raises(Refused):
        await running


async def test_one_console_is_open_at_a_time_and_its_place_is_had_again(
    there: Place,
) -> None:
    first = there.run("wait", ends=Ends(over=False), alone=True)
    await eventually(lambda: there.programs.running, "it runs")
    with pytest.raises(Refused) as caught:
        await there.run("wait", alone=True)
    assert caught.value.reason == "ConsoleBusy"
    assert await there.run("exit", "0") == 0, "commands do"
    first.cancel()
    await asyncio.wait({first})
    assert await there.run("exit", "0", alone=True) == 0


async def test_there_is_a_most_of_them(there: Place) -> None:
    many = [there.run("wait", ends=Ends(over=False)) for _ in range(16)]
    await eventually(lambda: len(there.programs.running) == 16, "they run")
    with pytest.raises(Exhausted):
        await there.run("exit", "0")
    for running in many:
        running.cancel()
    await asyncio.wait(many)
    assert await there.run("exit", "0") == 0


async def test_windows_are_told_once(there: Place) -> None:
    ends = Ends(over=False)
    ends.size = Window(30, 90)
    running = there.run("wait", ends=ends)
    await eventually(lambda: there.programs.running, "it runs")
    (program,) = there.programs.running.values()
    await eventually(lambda: len(program.turns) > 3, "it is asked")
    assert [turn.window for turn in program.turns if turn.window] == [Window(30, 90)]
    running.cancel()
    await asyncio.wait({running})


async def captured(there: Place) -> asyncio.Task[Any]:
    """Its memory is being written, which comes to nothing; the fake guest fails for whoever asks it
    meanwhile.
    """
    hanging, operations = there.driver.world.hanging, Operations(there.driver.manager)
    hanging.hangs = lambda call: call.startswith("capture ")
    taking = operations.create_snapshot(operations.find("s1"), "one", disk_only=False)
    task = asyncio.ensure_future(taking)
    await eventually(lambda: hanging.met, "the machine is paused")
    return task


async def test_none_is_begun_while_the_machine_stands_still(there: Place) -> None:
    taking = await captured(there)
    running = there.run("exit", "5")
    with pytest.raises(TimedOut):
        await taking
    assert await running == 5


async def test_none_is_begun_beside_a_frozen_workload(there: Place) -> None:
    """It would go on where nothing else does."""
    world, operations = there.driver.world, Operations(there.driver.manager)
    world.hanging.hangs = lambda call: call.startswith("pause ")
    taking = asyncio.ensure_future(
        operations.create_snapshot(operations.find("s1"), "one", disk_only=False)
    )
    await eventually(lambda: world.hanging.met, "the workload is frozen")
    running = there.run("exit", "5", timeout_s=0.3)
    with pytest.raises(TimedOut):
        await running
    assert there.programs.begun == []
    world.hanging.hangs = lambda _call: False
    world.hanging.give_up(there.driver.plan().domain)
    with pytest.raises(TimedOut):
        await taking
    assert await there.run("exit", "5") == 5
    await eventually(lambda: len(there.programs.ended) == 2, "nothing is left to end")


async def test_one_is_begun_while_the_memory_of_a_machine_that_goes_on_is_written() -> (
    None
):
    """That may take a minute and more, and nothing stands still."""
    there = await place(live_snapshots=True)
    world, operations = there.driver.world, Operations(there.driver.manager)
    world.hanging.hangs = lambda call: call.startswith("end of writing ")
    taking = asyncio.ensure_future(
        operations.create_snapshot(operations.find("s1"), "one", disk_only=False)
    )
    await eventually(lambda: world.hanging.met, "it is being written")
    assert await there.run("exit", "5", timeout_s=2) == 5
    assert not taking.done()
    world.hanging.give_up(there.driver.plan().domain)
    with pytest.raises(TimedOut):
        await taking
    await there.driver.close()


@pytest.mark.parametrize("held", ["pause ", "capture "])
async def test_none_is_begun_in_what_came_to_stand_still_since_that_was_looked_at(
    there: Place, held: str
) -> None:
    """The fake guest fails for whoever begins one then."""
    world, operations = there.driver.world, Operations(there.driver.manager)
    world.hanging.hangs = lambda call: call.startswith(held)
    taking: list[asyncio.Task[None]] = []

    async def freezes() -> None:
        if not taking:
            worker = operations.find("s1")
            snapshot = operations.create_snapshot(worker, "one", disk_only=False)
            taking.append(asyncio.ensure_future(snapshot))
            await eventually(lambda: world.hanging.met, "it stands still")

    there.programs.before_begin = freezes
    running = there.run("exit", "5")
    await eventually(lambda: world.hanging.met, "it stands still")
    await asyncio.sleep(0.05)
    assert there.programs.begun == []
    world.hanging.hangs = lambda _call: False
    world.hanging.give_up(there.driver.plan().domain)
    await asyncio.wait(taking)
    assert await running == 5


async def test_a_sandbox_that_was_stopped_since_that_was_looked_at_runs_none(
    there: Place,
) -> None:
    async def stops() -> None:
        await there.driver.manager.stop("s1", "", {})

    there.programs.before_begin = stops
    with pytest.raises(Refused) as caught:
        await there.run("exit", "5")
    assert caught.value.reason == "NotRunning"
    assert there.programs.begun == []


async def test_whoever_goes_while_the_machine_stands_still_ends_it_when_that_goes_on(
    there: Place,
) -> None:
    running = there.run("wait", ends=Ends(over=False))
    await eventually(lambda: there.programs.running, "it runs")
    taking = await captured(there)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    with pytest.raises(TimedOut):
        await taking
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_a_machine_that_does_not_go_on_is_waited_for_no_longer_than_said(
    there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, command_still_s=0.05)
    taking = await captured(there)
    with pytest.raises(TimedOut, match="sandbox s1 stands still"):
        await there.run("exit", "5")
    with pytest.raises(TimedOut):
        await taking


async def test_what_is_refused_is_told_and_logged_too(
    there: Place, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = there.driver.broadcaster.subscribe()
    first = there.run("wait", ends=Ends(over=False), alone=True)
    await eventually(lambda: there.programs.running, "it runs")
    with pytest.raises(Refused):
        await there.run("a", "b c", alone=True)
    with pytest.raises(NotFound):
        await there.commands.run(
            Asked("no", Program(("d e",), as_root=True)), Ends(), WHO
        )
    first.cancel()
    await asyncio.wait({first})
    subscription.close()
    told = []
    while (notice := await subscription.next()) is not None:
        if isinstance(notice, Happened) and notice.event.type == "Warning":
            told.append((notice.event.reason, notice.event.message))
    busy = "another console of sandbox s1 is open"
    text = f"{WHO} may run no command as sandbox ({busy}){COMMAND_FOLLOWS} a 'b c'"
    assert told == [("OperatorCommandRefused", text)]
    assert text in caplog.text
    assert f"{WHO} may run no command as root (" in caplog.text
    assert f"){COMMAND_FOLLOWS} 'd e'" in caplog.text


async def test_words_that_are_no_text_are_refused_and_those_of_another_locale_are_not(
    there: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(InvalidRequest, match="is no text"):
        await there.run("exit", "0", "\ud800")
    assert await there.run("exit", "0", "\udcff", "\x1b[2K\n") == 0
    assert f"{COMMAND_FOLLOWS} exit 0 '\\ud800'" in caplog.text
    assert f"{COMMAND_FOLLOWS} exit 0 '\\udcff' '\\x1b[2K\\n'" in caplog.text
