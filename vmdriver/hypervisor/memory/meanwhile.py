"""A machine's memory of one moment, written while the machine goes on: QEMU's background snapshot.

QEMU saves the devices, has the kernel protect all of the guest's memory against writing
(userfaultfd), and lets the machine go on; a page that is written to is copied into the stream
first. So this does not depend on QEMU's own account of what a guest changes, which is wrong without
KVM (DECISIONS.md). It needs memory that is mapped from no file, and the right to userfaultfd.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import Any

import libvirt

from vmdriver.errors import HypervisorError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import open_plain
from vmdriver.hypervisor import domain_reading, monitor
from vmdriver.hypervisor.memory import capture
from vmdriver.lifecycle.ports.memory import Streamed

_log = logging.getLogger(__name__)
_SOON_S, _POLL_S = 0.001, 0.02
_HEARD_S = 0.5
"""In which libvirt hears that a machine goes on."""
_LONGEST_WORDS = 200


def why_still(machine: Any) -> str:
    """What QEMU says where it cannot. Asking it leaves nothing behind."""
    try:
        capture.write_meanwhile(machine, on=True)
    except HypervisorError as error:
        return error.message[:_LONGEST_WORDS]
    capture.write_meanwhile(machine, on=False)
    return ""


def begin(machine: Any, path: str, pulse: Pulse) -> Streamed:
    """See ports.MachineMemory.begin_stream."""
    text = capture.describe(machine)
    target = capture.new_file(path)
    try:
        capture.hand_over(machine, target, meanwhile=True)
        capture.begin(machine)
        _wait_until_it_goes_on(machine, pulse)
    except BaseException:
        give_up(machine)
        raise
    return Streamed(path, text, meanwhile=True)


def _wait_until_it_goes_on(machine: Any, pulse: Pulse) -> None:
    deadline, heard_by = time.monotonic() + capture.STALL_S, 0.0
    while not pulse.given_up and time.monotonic() < deadline:
        if machine.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            return
        if _is_protected(machine):
            # It does so by itself, or, from some release on, stays as it was.
            heard_by = heard_by or time.monotonic() + _HEARD_S
            if not _runs(machine) or time.monotonic() > heard_by:
                machine.resume()
        time.sleep(_SOON_S)
    raise TimedOut("QEMU does not let the machine go on while it writes its memory")


def _is_protected(machine: Any) -> bool:
    """What the guest does from now on is not in what is written. HypervisorError when it is not
    written.
    """
    answer = monitor.ask(machine, "query-migrate")
    with monitor.reading("query-migrate"):
        status, ram = answer.get("status", "none"), answer.get("ram", {})
        if status in {"failed", "cancelled", "none"}:
            words = str(answer.get("error-desc", status))[:_LONGEST_WORDS]
            raise HypervisorError(f"QEMU could not begin to write the memory: {words}")
        # The first page comes after all of them are protected.
        return bool(status == "completed" or ram.get("normal") or ram.get("duplicate"))


def _runs(machine: Any) -> bool:
    answer = monitor.ask(machine, "query-status")
    with monitor.reading("query-status"):
        return answer["running"] is True


def end(machine: Any, streamed: Streamed, pulse: Pulse) -> None:
    """See ports.MachineMemory.end_stream."""
    memory_bytes = domain_reading.read_memory_bytes(streamed.domain_xml)
    longest_s = capture.longest_s(memory_bytes)
    watched = open_plain(streamed.path, os.O_RDWR)
    check = partial(capture.check_length, watched, memory_bytes)
    try:
        problem = capture.until_written(machine, pulse, longest_s, check, _POLL_S)
        check()
    except BaseException:
        os.truncate(watched, 0)  # QEMU may have it open for ever
        raise
    finally:
        os.close(watched)
        give_up(machine)
    if problem:
        raise capture.not_streamed(streamed.path, problem)


def give_up(machine: Any) -> None:
    """End it, if it is under way, and have the next one written of a machine that stands still."""
    capture.give_up(machine)
    capture.write_meanwhile(machine, on=False)


def give_up_if_it_runs(machine: Any, pulse: Pulse) -> None:
    """The same of what may have ended: its definition outlasts it. And have what was not written to
    its end leave nothing behind.
    """
    if not machine.isActive():
        return
    give_up(machine)
    answer = monitor.ask(machine, "query-migrate")
    with monitor.reading("query-migrate"):
        whole = answer.get("status", "none") in {"completed", "none"}
    if not whole and machine.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        _mend(machine, pulse)


def _mend(machine: Any, pulse: Pulse) -> None:
    """Write it once more, to its end, for nobody. A QEMU before 8.1 that has not written one to
    its end takes its memory for protected, and cannot write it in any other way: no suspension
    would come to anything any more. TimedOut.
    """
    memory_bytes = domain_reading.read_memory_bytes(capture.describe(machine))
    target = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    problem = ""
    try:
        capture.hand_over(machine, target, meanwhile=True)
        capture.begin(machine)
        longest_s = capture.longest_s(memory_bytes)
        problem = capture.until_written(
            machine, pulse, longest_s, lambda: None, _POLL_S
        )
    except HypervisorError as error:
        problem = error.message
    finally:
        give_up(machine)
    if problem:
        _log.warning("its memory cannot be written any more: %s", problem)
