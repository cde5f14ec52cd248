"""A QEMU that its guest has taken over is asked for its memory, and does not come to an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_checkpoints import RAM, stream
from tests.unit.test_hostile_streams import BEGUN, END
from tests.unit.test_stream_passes import FOOTER, PART, Pass, records, stream_of
from vmdriver.errors import HypervisorError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.hypervisor import root_disk
from vmdriver.hypervisor.memory import capture, running
from vmdriver.hypervisor.memory.ram_stream import PAGE
from vmdriver.hypervisor.memory.running import PACE, Pace
from vmdriver.hypervisor.memory.standing import Standing
from vmdriver.lifecycle.ports.memory import Captured

XML = f"""<domain><memory unit='KiB'>{RAM // 1024}</memory>
<seclabel type='static' model='dac' relabel='no'><label>+1879100001:+1879100000</label></seclabel></domain>"""


class Machine:
    """Its monitor says what a test wants; what it is given to write to is written to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = -1
        self.cancelled = False
        self.transferred = 0
        monkeypatch.setattr(capture, "hand_over", self._take)
        monkeypatch.setattr(capture.monitor, "ask", self._ask)

    def name(self) -> str:
        return "machine"

    def XMLDesc(self, _flags: int = 0) -> str:
        return XML

    def _take(self, _machine: Any, target: int, *_: Any, **__: Any) -> None:
        self.target = os.dup(target)
        os.close(target)
        self.begin()

    def _ask(self, _machine: Any, command: str, **_: Any) -> Any:
        if command == "migrate_cancel":
            self.cancelled = True
        if command != "query-migrate":
            return {}
        if self.cancelled:
            return {"status": "cancelled"}
        self.transferred += 1
        return {"status": self.more(), "ram": {"transferred": self.transferred}}

    def begin(self) -> None:
        pass

    def more(self) -> str:
        return "active"

    def close(self) -> None:
        if self.target >= 0:
            os.close(self.target)


async def while_it_runs(machine: Any, memory: Path, pace: Pace) -> Captured:
    standing = Standing()
    call = (running.to_memory, machine, str(memory), RAM, Pulse(), standing, pace)
    work = asyncio.create_task(asyncio.to_thread(*call))
    asked = asyncio.create_task(standing.asked())
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    machine.stands = asked.done()
    standing.answer(stands=True)
    return await work


def written(into: str, machine: Any, memory: Path, pace: Pace = PACE) -> Captured:
    memory.touch()
    if into == "standing":
        return capture.to_memory(machine, str(memory), RAM, Pulse())
    return asyncio.run(while_it_runs(machine, memory, pace))


class Passing(Machine):
    """Writes a stream as long as it is read; a further pass is one more word about the rate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *parts: bytes) -> None:
        super().__init__(monkeypatch)
        self.parts, self.passes, self.wrote = parts, 0, threading.Event()
        self.stands = self.switched = False

    def begin(self) -> None:
        work = (self.target, self.wrote)
        self.target = -1
        threading.Thread(target=self._write, args=work, daemon=True).start()

    def _write(self, target: int, wrote: threading.Event) -> None:
        with contextlib.suppress(BrokenPipeError):
            for part in self.parts:
                while part:
                    part = part[os.write(target, part) :]
        wrote.set()
        os.close(target)

    def _ask(self, machine: Any, command: str, **words: Any) -> Any:
        self.passes += command == "migrate-set-parameters"
        self.switched |= command == "migrate-continue"
        answer = super()._ask(machine, command, **words)
        if command == "query-migrate":
            ram = {"remaining": RAM, "dirty-sync-count": self.passes}
            answer.setdefault("ram", {}).update(ram)
        return answer

    def more(self) -> str:
        if self.switched:
            return "completed"
        done = self.stands and self.wrote.is_set()
        return "pre-switchover" if done else "active"


FULL: Pass = {(b"pc.ram", n): 1 for n in range(RAM // PAGE)}
QUICK = Pace(window_s=0.01, little=0, most_passes=5)


def test_a_guest_that_changes_faster_than_it_is_written_is_stopped_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: Pass = dict.fromkeys(FULL, 2)
    machine = Passing(monkeypatch, stream_of([FULL] * 5 + [last]))
    captured = written("running", machine, tmp_path / "memory", QUICK)
    assert captured.stood == "it changes faster than it is written: 0 MiB were left"
    assert machine.passes == QUICK.most_passes + 1, "the last word is: without limit"
    assert (tmp_path / "memory").read_bytes() == bytes([2]) * RAM


def test_little_is_waited_for_and_then_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Passing(monkeypatch, stream_of([FULL, FULL]))
    captured = written("running", machine, tmp_path / "memory", Pace(window_s=0.01))
    assert captured.stood == ""
    assert captured.stored_bytes == RAM


def test_a_qemu_that_was_too_fast_is_let_go_on_and_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(Passing):
        tries = 0

        def begin(self) -> None:
            self.tries, self.cancelled = self.tries + 1, False
            self.wrote = threading.Event()
            super().begin()

        def more(self) -> str:
            return "pre-switchover" if self.tries == 1 else super().more()

    machine = Hasty(monkeypatch, stream_of([FULL, FULL]))
    captured = written("running", machine, tmp_path / "memory", Pace(window_s=0.01))
    assert (machine.tries, captured.stood) == (2, "")
    assert captured.stored_bytes == RAM


@pytest.mark.parametrize("into", ["standing", "running"])
def test_a_stream_longer_than_all_memory_is_cut_short(
    into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on to say that it gets on."""
    endless = [records(FULL)] * 16
    machine = Passing(monkeypatch, BEGUN + END + FOOTER + PART, *endless)
    memory = tmp_path / "memory"
    monkeypatch.setattr(capture, "LONGEST_S", 1.0)
    with pytest.raises((HypervisorError, TimedOut)) as raised:
        written(into, machine, memory, replace(QUICK, most_passes=1000))
    if into == "running":
        assert raised.value.reason == "StreamRefused"
    assert machine.cancelled
    assert memory.stat().st_size <= RAM


@pytest.mark.parametrize("into", ["standing", "running"])
def test_one_that_gets_on_for_ever_is_given_up(
    into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(capture, "LONGEST_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(TimedOut, match="does not get on"):
        written(into, machine, tmp_path / "memory")
    assert time.monotonic() - begun < 5
    assert machine.cancelled
    machine.close()


def test_one_that_says_it_is_done_and_does_not_let_go_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Holding(Machine):
        def begin(self) -> None:
            os.write(self.target, stream({1: b"x" * 4096}, {})[:-1])

        def more(self) -> str:
            return "completed"

    machine, memory = Holding(monkeypatch), tmp_path / "memory"
    memory.touch()
    monkeypatch.setattr(capture, "STALL_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(TimedOut, match="does not come to its end"):
        capture.to_memory(machine, str(memory), RAM, Pulse())
    assert time.monotonic() - begun < 5
    machine.close()


def test_what_qemu_says_of_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Machine):
        def begin(self) -> None:
            self.close()
            self.target = -1

        def _ask(self, machine: Any, command: str, **words: Any) -> Any:
            return {"status": "failed", "error-desc": "no good"}

    machine, memory = Failing(monkeypatch), tmp_path / "memory"
    memory.touch()
    with pytest.raises(HypervisorError, match="could not write the memory: no good"):
        capture.to_memory(machine, str(memory), RAM, Pulse())


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"error": 1}', "[" * 100_000, "\x00"]
)
def test_an_answer_of_qemus_that_makes_no_sense_is_an_error_like_any(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        capture.monitor.libvirt_qemu, "qemuMonitorCommand", lambda *_: said
    )
    with pytest.raises(HypervisorError):
        capture.monitor.ask(object(), "query-migrate")


@pytest.mark.parametrize(
    ("command", "objects"), [("query-migrate", 10**5), ("query-block", 10**7)]
)
def test_an_answer_of_qemus_that_would_take_all_memory_is_not_read(
    command: str, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 MB of it are three million dictionaries, and nothing else is done in this process while they are made."""
    said = '{"return": [' + "{}," * (objects // 3) + "{}]}"
    monkeypatch.setattr(
        capture.monitor.libvirt_qemu, "qemuMonitorCommand", lambda *_: said
    )
    with pytest.raises(HypervisorError, match="is too long"):
        capture.monitor.ask(object(), command)


def test_a_qemu_that_says_it_has_thousands_of_images_is_not_asked_to_close_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = {"node-name": "n", "file": "/x", "drv": "qcow2"}
    answers = {"query-block": [], "query-named-block-nodes": [node] * 50_000}
    machine = Machine(monkeypatch)
    monkeypatch.setattr(
        capture.monitor, "ask", lambda _, command, **__: answers[command]
    )
    with pytest.raises(HypervisorError, match="too many images"):
        root_disk.switch(machine, "/layer")


@pytest.mark.parametrize("into", ["standing", "running"])
@pytest.mark.parametrize("answer", [[], 7, {"ram": 7}, {"status": []}, None])
def test_an_answer_of_another_shape_is_an_error_like_any(
    answer: Any, into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(capture.monitor, "ask", lambda *_, **__: answer)
    with pytest.raises(HypervisorError, match="query-migrate makes no sense"):
        written(into, machine, tmp_path / "memory")
    machine.close()
    for other in (answer, [7], [{"inserted": 7}], [{"inserted": {"image": {}}}]):
        monkeypatch.setattr(capture.monitor, "ask", lambda *_, found=other, **__: found)
        with pytest.raises(HypervisorError):
            root_disk.switch(machine, "/layer")
