"""A QEMU that is to write its machine's memory while the machine goes on: as releases differ in it, and as it fails half-way."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from tests.unit.test_capture_bounds import XML
from vmdriver.errors import HypervisorError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.hypervisor import monitor
from vmdriver.hypervisor.memory import capture, meanwhile

CAPABILITY = capture.MEANWHILE


class Qemu:
    """Its steps come one after the other, each at a later question."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        refuses: str = "",
        status: tuple[str, ...] = ("setup", "active", "active", "completed"),
        goes_on: bool = True,
        heard: bool = True,
    ) -> None:
        """`goes_on`: by itself when its memory is protected; `heard`: libvirt notices."""
        self.refuses, self._status, self._goes_on = refuses, list(status), goes_on
        self._heard = heard
        self.writes_meanwhile = False
        self.running = self.resumed = self.cancelled = self.ended = False
        self.pages = 0
        self.next: list[str] = []
        self.file = -1
        self.known = libvirt.VIR_DOMAIN_PAUSED
        monkeypatch.setattr(monitor, "ask", self._ask)
        monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommandWithFiles", self._take)

    def XMLDesc(self, _flags: int = 0) -> str:
        return XML

    def isActive(self) -> bool:
        return not self.ended

    def state(self) -> list[int]:
        return [self.known, 0]

    def resume(self) -> None:
        assert self.pages, "it would change what is not protected yet"
        self.resumed = self.running = True
        self.known = libvirt.VIR_DOMAIN_RUNNING

    def _take(self, _machine: Any, _text: str, files: list[int], _flags: int) -> str:
        self.file = os.dup(files[0])
        return "{}"

    def _ask(self, _machine: Any, command: str, **words: Any) -> Any:
        if self.ended:
            raise libvirt.libvirtError("domain is not running")
        if command == "migrate-set-capabilities":
            (wanted,) = words["capabilities"]
            assert wanted["capability"] == CAPABILITY
            if wanted["state"] and self.refuses:
                raise HypervisorError(f"QEMU refused {command}: {self.refuses}")
            self.writes_meanwhile = wanted["state"]
        elif command == "migrate":
            assert self.writes_meanwhile
            self._status, self.next = self.next or self._status, []
            os.write(self.file, b"stream")
        elif command == "migrate_cancel":
            self.cancelled, self._status = True, ["cancelled"]
        elif command == "query-status":
            return {"running": self.running}
        elif command == "query-migrate":
            return self._progress()
        return {}

    def _progress(self) -> dict[str, Any]:
        status = self._status.pop(0) if len(self._status) > 1 else self._status[0]
        if status in {"active", "completed"}:
            self.pages += 1
            if self._goes_on:
                self.running = True
                if self._heard:
                    self.known = libvirt.VIR_DOMAIN_RUNNING
        return {
            "status": status,
            "error-desc": "No space left on device",
            "ram": {"normal": self.pages, "transferred": self.pages},
        }


def test_whether_it_can_is_asked_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Qemu(monkeypatch)
    assert meanwhile.why_still(machine) == ""
    assert not machine.writes_meanwhile
    why = meanwhile.why_still(Qemu(monkeypatch, refuses="not this memory"))
    assert "not this memory" in why


def test_what_a_killed_driver_left_on_is_off_for_one_that_is_to_stand_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Qemu(monkeypatch)
    machine.writes_meanwhile = True
    capture.hand_over(machine, os.open(os.devnull, os.O_WRONLY))
    assert not machine.writes_meanwhile
    os.close(machine.file)


@pytest.mark.parametrize(
    ("goes_on", "heard", "resumed"),
    [(True, True, False), (False, True, True), (True, False, True)],
)
def test_it_goes_on_by_itself_or_is_let_go_on_once_its_memory_is_protected(
    goes_on: bool,
    heard: bool,
    resumed: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    status = ("setup", "setup", "active")
    machine = Qemu(monkeypatch, status=status, goes_on=goes_on, heard=heard)
    streamed = meanwhile.begin(machine, str(tmp_path / "s"), Pulse())
    assert streamed.meanwhile
    assert machine.resumed is resumed
    assert machine.running
    assert machine.known == libvirt.VIR_DOMAIN_RUNNING
    assert not machine.cancelled
    os.close(machine.file)


def test_one_that_cannot_begin_is_left_standing_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Qemu(monkeypatch, status=("setup", "failed"))
    with pytest.raises(HypervisorError, match="No space left"):
        meanwhile.begin(machine, str(tmp_path / "s"), Pulse())
    assert not machine.running
    assert not machine.writes_meanwhile, "the next writing would let it go on"
    refusing = Qemu(monkeypatch, refuses="not now")
    with pytest.raises(HypervisorError, match="not now"):
        meanwhile.begin(refusing, str(tmp_path / "t"), Pulse())
    assert refusing.file == -1


def test_one_that_stays_in_its_beginning_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine, pulse = Qemu(monkeypatch, status=("setup",)), Pulse()
    threading.Timer(0.1, setattr, (pulse, "given_up", True)).start()
    begun = time.monotonic()
    with pytest.raises(TimedOut):
        meanwhile.begin(machine, str(tmp_path / "s"), pulse)
    assert time.monotonic() - begun < 2
    assert machine.cancelled
    assert not machine.running
    assert not machine.writes_meanwhile


def test_it_is_waited_for_until_it_is_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Qemu(monkeypatch)
    streamed = meanwhile.begin(machine, str(tmp_path / "s"), Pulse())
    meanwhile.end(machine, streamed, Pulse())
    assert not machine.cancelled
    assert not machine.writes_meanwhile
    assert (tmp_path / "s").read_bytes() == b"stream"


@pytest.mark.parametrize("how", ["failed", "given up", "too long"])
def test_one_that_fails_in_the_middle_is_ended_and_its_file_is_cut_off(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, pulse = tmp_path / "s", Pulse()
    last = "failed" if how == "failed" else "active"
    machine = Qemu(monkeypatch, status=("setup", "active", last))
    streamed = meanwhile.begin(machine, str(path), Pulse())
    if how == "given up":
        pulse.given_up = True
    if how == "too long":
        monkeypatch.setattr(capture, "longest_s", lambda _bytes: 0.05)
    with pytest.raises((HypervisorError, TimedOut)):
        meanwhile.end(machine, streamed, pulse)
    assert machine.running
    assert not machine.writes_meanwhile
    assert machine.cancelled is (how != "failed")
    if how != "failed":
        assert path.stat().st_size == 0, "QEMU may have it open for ever"


def test_a_file_that_grows_beyond_the_memory_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Qemu(monkeypatch, status=("setup", "active"))
    streamed = meanwhile.begin(machine, str(tmp_path / "s"), Pulse())
    os.truncate(streamed.path, 2**40)
    with pytest.raises(HypervisorError, match="longer than all"):
        meanwhile.end(machine, streamed, Pulse())
    assert machine.cancelled
    assert (tmp_path / "s").stat().st_size == 0


def test_of_one_that_has_ended_nothing_is_left_to_be_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Qemu(monkeypatch)
    meanwhile.begin(machine, str(tmp_path / "s"), Pulse())
    machine.ended = True
    meanwhile.give_up_if_it_runs(machine, Pulse())
    os.close(machine.file)


def test_one_that_was_ended_is_written_once_more_for_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """QEMU before 8.1 could write it in no other way after that."""
    machine = Qemu(monkeypatch, status=("setup", "active"))
    meanwhile.begin(machine, str(tmp_path / "s"), Pulse())
    os.close(machine.file)
    machine.next = ["setup", "active", "completed"]
    meanwhile.give_up_if_it_runs(machine, Pulse())
    assert machine.cancelled
    assert os.readlink(f"/proc/self/fd/{machine.file}") == os.devnull
    assert not machine.writes_meanwhile
    begun = machine.file
    meanwhile.give_up_if_it_runs(machine, Pulse())
    assert machine.file == begun, "the last one was written to its end"
    os.close(begun)
