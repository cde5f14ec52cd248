"""A QEMU that its guest has taken over is asked for its memory, and does not come to an end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from tests.unit.test_checkpoints import RAM, stream
from vmdriver.errors import HypervisorError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.hypervisor import monitor, root_disk
from vmdriver.hypervisor.memory import capture

XML = f"""<domain><memory unit='KiB'>{RAM // 1024}</memory>
<seclabel type='static' model='dac' relabel='no'><label>+1879100001:+1879100000</label></seclabel></domain>"""


class Machine:
    """Its monitor says what a test wants; what it is given to write to is written to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = -1
        self.cancelled = False
        self.transferred = 0
        monkeypatch.setattr(capture, "hand_over", self._take)
        monkeypatch.setattr(monitor, "ask", self._ask)

    def XMLDesc(self, _flags: int = 0) -> str:
        return XML

    def _take(self, _machine: Any, target: int) -> None:
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


def test_a_stream_longer_than_all_memory_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(Machine):
        def more(self) -> str:
            os.ftruncate(self.target, os.fstat(self.target).st_size + 8 * 2**20)
            return "active"

    machine, path = Endless(monkeypatch), tmp_path / "stream"
    with pytest.raises(HypervisorError, match="longer than all") as raised:
        capture.to_stream(machine, str(path), Pulse())
    assert raised.value.reason == "StreamRefused"
    assert machine.cancelled
    assert path.stat().st_size == 0, "whoever has it open holds no space"
    machine.close()


@pytest.mark.parametrize("into", ["file", "memory"])
def test_one_that_gets_on_for_ever_is_given_up(
    into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, memory = Machine(monkeypatch), tmp_path / "memory"
    memory.touch()
    monkeypatch.setattr(capture, "LONGEST_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(TimedOut, match="does not get on"):
        if into == "file":
            capture.to_stream(machine, str(tmp_path / "stream"), Pulse())
        else:
            capture.to_memory(machine, str(memory), RAM, Pulse())
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
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", lambda *_: said)
    with pytest.raises(HypervisorError):
        monitor.ask(object(), "query-migrate")


@pytest.mark.parametrize(
    ("command", "objects"), [("query-migrate", 10**5), ("query-block", 10**7)]
)
def test_an_answer_of_qemus_that_would_take_all_memory_is_not_read(
    command: str, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 MB of it are three million dictionaries, and nothing else is done in this process while they are made."""
    said = '{"return": [' + "{}," * (objects // 3) + "{}]}"
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", lambda *_: said)
    with pytest.raises(HypervisorError, match="is too long"):
        monitor.ask(object(), command)


def test_a_qemu_that_says_it_has_thousands_of_images_is_not_asked_to_close_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = {"node-name": "n", "file": "/x", "drv": "qcow2"}
    answers = {"query-block": [], "query-named-block-nodes": [node] * 50_000}
    machine = Machine(monkeypatch)
    monkeypatch.setattr(monitor, "ask", lambda _, command, **__: answers[command])
    with pytest.raises(HypervisorError, match="too many images"):
        root_disk.switch(machine, "/layer")


@pytest.mark.parametrize("answer", [[], 7, {"ram": 7}, {"status": []}, None])
def test_an_answer_of_another_shape_is_an_error_like_any(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(monitor, "ask", lambda *_, **__: answer)
    with pytest.raises(HypervisorError, match="query-migrate makes no sense"):
        capture.to_stream(machine, str(tmp_path / "stream"), Pulse())
    machine.close()
    for other in (answer, [7], [{"inserted": 7}], [{"inserted": {"image": {}}}]):
        monkeypatch.setattr(monitor, "ask", lambda *_, found=other, **__: found)
        with pytest.raises(HypervisorError):
            root_disk.switch(machine, "/layer")
