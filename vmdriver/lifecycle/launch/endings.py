"""Why a sandbox is not running, in words for its user. Pure."""

from __future__ import annotations

from vmdriver.errors import DriverError
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import MachineState, Phase
from vmdriver.model.record import (
    CONSOLE_FOLLOWS,
    MACHINE_CRASHED,
    MAIN_PROCESS_EXITED,
    NOT_SET_UP,
    PROVISIONING_FAILED,
    Failure,
)

_TAIL = 1500


def _with_tail(message: str, tail: str) -> str:
    return f"{message}{CONSOLE_FOLLOWS}\n{tail[-_TAIL:]}" if tail else message


def provisioning_failed(cause: DriverError) -> Failure:
    """The launch did not get to a running machine."""
    return Failure(
        reason=PROVISIONING_FAILED, message=f"{cause.reason}: {cause.text()}"
    )


def cut_off(failure: Failure) -> Failure:
    """A launch whose QEMU has ended, and not by the guest's word: it is tried once more."""
    return failure.model_copy(update={"will_retry": True, "in_launch": True})


def not_ready(timeout_s: float, tail: str) -> Failure:
    """The machine runs, but its init never reported."""
    message = f"the guest did not start its supervisor within {timeout_s:g} s"
    return Failure(reason=PROVISIONING_FAILED, message=_with_tail(message, tail))


def of_machine(
    machine: MachineState, report: GuestReport, phase: Phase, tail: str, retry: bool
) -> Failure:
    """A machine that ended by itself. Only a crash may be retried: the end of the main
    process is final.
    """
    if machine is MachineState.EXITED:
        code = report.exit_code
        text = f"the main process ended with exit code {'unknown' if code is None else code}"
        return Failure(reason=MAIN_PROCESS_EXITED, message=text, exit_code=code)
    if machine is MachineState.BROKEN and phase is Phase.LAUNCHING:
        message = f"{NOT_SET_UP} {report.reason or 'no reason given'}"
        return Failure(reason=PROVISIONING_FAILED, message=_with_tail(message, tail))
    gone = machine is MachineState.ABSENT
    message = (
        "the machine has disappeared" if gone else "the machine ended unexpectedly"
    )
    return Failure(
        reason=MACHINE_CRASHED, message=_with_tail(message, tail), will_retry=retry
    )
