"""Three enums with three owners, and the table that turns them into the next thing to
do.

Intent is what was asked (the gateway's or the operator's). Phase is what we are doing
(ours, durable). MachineState is what the hypervisor and the guest's status disk say
(theirs, never stored). `next_action` is the whole policy: create, start, stop, delete,
failure and driver restart are the same loop over this table.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Intent(StrEnum):
    """What was asked for last."""

    RUNNING = "running"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    """Down, with its memory kept."""
    DELETED = "deleted"


class Asked(NamedTuple):
    """What is asked for: the two fields of a record that say so."""

    intent: Intent
    stop_anyway: bool = False


class Phase(StrEnum):
    """What we are doing about it; stored before it is begun."""

    NEW = "new"
    LAUNCHING = "launching"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    """Nothing runs or is held; the memory is on disk."""
    RESUMING = "resuming"
    """Coming back from memory; `memory` in the record says from which image and how far."""
    FAILING = "failing"
    """Undoing a launch or a machine that ended; `failure` in the record says why."""
    FAILED = "failed"
    DELETING = "deleting"


class DomainState(StrEnum):
    """What libvirt says."""

    ABSENT = "absent"
    RUNNING = "running"
    PAUSED = "paused"
    STALLED = "stalled"
    """QEMU has paused it by itself: there is no space for what it writes."""
    OFF = "off"
    CRASHED = "crashed"


class MachineState(StrEnum):
    """libvirt's word and the guest's own, put together."""

    ABSENT = "absent"
    """Nothing is running, and nothing ever reported: never started, or lost with the
    host.
    """
    BOOTING = "booting"
    READY = "ready"
    EXITED = "exited"
    """The main process has ended; the guest said with which code."""
    BROKEN = "broken"
    """The guest said that it could not set itself up."""
    CRASHED = "crashed"
    """The machine ended without the guest saying anything."""
    STALLED = "stalled"
    """It is there, and stands still without our doing."""


class Action(StrEnum):
    """What the worker does next."""

    REST = "rest"
    LAUNCH = "launch"
    AWAIT_READY = "await ready"
    CONFIRM_RUNNING = "confirm running"
    RECORD_END = "record end"
    """The machine ended by itself: note why, then clean up."""
    RECOVER_LOST = "recover lost"
    """It was meant to run and is not there: start again after a host reboot, else it
    crashed.
    """
    STAND_STILL = "stand still"
    """Show why the machine does, and let it go on when it can."""
    CLEAN_UP = "clean up"
    STOP = "stop"
    SUSPEND = "suspend"
    RESUME = "resume"
    DELETE = "delete"
    LOOK = "look"
    """At libvirt and the guest; the following are no answers of `next_action`, but the loop does
    them between the others.
    """
    REVERT = "revert"
    GO_ON = "go on"
    """Let a machine run again that was held still."""
    JOB = "job"
    """What an operator asked for."""
    MERGE = "merge"
    """Layers of a sandbox that is down."""


SAID = frozenset({"started", "exited", "failed"})
"""What a sandbox's guest says of itself. Nothing else on its status disk counts: not what a
template says, nor whatever root in the guest writes there.
"""
_ENDED = {MachineState.EXITED, MachineState.BROKEN, MachineState.CRASHED}


def machine_state(domain: DomainState, report: str) -> MachineState:
    """Join libvirt's state with the guest's last report (one of SAID counts)."""
    if report == "exited" and domain is not DomainState.ABSENT:
        return MachineState.EXITED
    if report == "failed" and domain is not DomainState.ABSENT:
        return MachineState.BROKEN
    if domain is DomainState.STALLED:
        return MachineState.STALLED
    if domain in {DomainState.RUNNING, DomainState.PAUSED}:
        return MachineState.READY if report == "started" else MachineState.BOOTING
    if domain in {DomainState.OFF, DomainState.CRASHED}:
        return MachineState.CRASHED
    return MachineState.ABSENT


def _when_meant_to_run(phase: Phase, machine: MachineState) -> Action:
    if phase in {Phase.NEW, Phase.STOPPED}:
        return Action.LAUNCH
    if phase is Phase.STOPPING:
        return Action.STOP
    if phase is Phase.SUSPENDING:
        return Action.SUSPEND
    if phase in {Phase.SUSPENDED, Phase.RESUMING}:
        return Action.RESUME
    if phase is Phase.FAILING:
        return Action.CLEAN_UP
    if phase is Phase.FAILED:
        return Action.REST
    if machine in _ENDED:
        return Action.RECORD_END
    if machine is MachineState.STALLED:
        return Action.STAND_STILL
    if phase is Phase.LAUNCHING:
        return {
            MachineState.ABSENT: Action.LAUNCH,
            MachineState.BOOTING: Action.AWAIT_READY,
            MachineState.READY: Action.CONFIRM_RUNNING,
        }[machine]
    return Action.RECOVER_LOST if machine is MachineState.ABSENT else Action.REST


def _when_meant_to_be_suspended(phase: Phase, machine: MachineState) -> Action:
    if phase in {Phase.SUSPENDED, Phase.STOPPED}:
        return Action.REST
    if phase is Phase.RESUMING:
        return Action.RESUME  # that knows whether its memory is used already
    if phase is Phase.SUSPENDING:
        return Action.SUSPEND
    if phase is Phase.RUNNING and machine in {MachineState.READY, MachineState.STALLED}:
        return Action.SUSPEND
    return Action.STOP  # there is no memory worth keeping


def next_action(intent: Intent, phase: Phase, machine: MachineState) -> Action:
    """What to do now. Total: every combination has an answer, and repeating it is
    harmless.
    """
    if intent is Intent.DELETED or phase is Phase.DELETING:
        return Action.DELETE
    if intent is Intent.SUSPENDED:
        return _when_meant_to_be_suspended(phase, machine)
    if intent is Intent.STOPPED:
        down = phase in {Phase.STOPPED, Phase.SUSPENDED}
        return Action.REST if down else Action.STOP
    return _when_meant_to_run(phase, machine)


_ON_THE_WAY_UP = {Action.LAUNCH, Action.AWAIT_READY, Action.RESUME}
_KEEPING = {Action.SUSPEND, Action.REVERT, Action.GO_ON, Action.JOB}


def cuts_off(asked: Asked, doing: Action) -> bool:
    """Whether what is asked for now is more urgent than what is being done. What gives back, and
    what notes an end, is what a stop needs anyway.
    """
    if asked.intent is Intent.DELETED:
        return doing is not Action.DELETE
    if asked.intent is Intent.STOPPED:
        looking = {Action.LOOK, Action.REST, Action.STAND_STILL}
        return doing in _ON_THE_WAY_UP | _KEEPING | looking
    if asked.intent is Intent.SUSPENDED:
        # What the gateway asks for does not wait for what an operator asked for.
        operators = {Action.JOB, Action.STAND_STILL} if asked.stop_anyway else set()
        return doing in _ON_THE_WAY_UP | operators
    return doing is Action.MERGE
