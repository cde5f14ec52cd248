"""PCI functions from their driver to vfio-pci and back, and their groups' nodes. Blocking.

Every step looks first: any of them may have been done by a process that was killed, and the one
that is not needed is not done.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable

from vmdriver.devices.files import Files
from vmdriver.devices.looking import (
    DEVICES,
    DRIVERS,
    driver_of,
    override_of,
)
from vmdriver.errors import HostError
from vmdriver.model.devices import VFIO, PassedFunction
from vmdriver.model.plan import MachineUser

_log = logging.getLogger(__name__)
_UDEV_BUSY = "run/udev/queue"
"""There while udevd has events to work on, which is what `udevadm settle` waits for too."""
_SETTLE_S, _POLL_S = 5.0, 0.02
_ROOT = 0


def give(
    files: Files, functions: tuple[PassedFunction, ...], user: MachineUser
) -> None:
    """Have vfio-pci drive them, and their nodes be the user's. HostError."""
    for function in functions:
        _check_unchanged(files, function)
    # A group is opened once at a time: whoever else has it is found before anything of it is
    # changed, and once more before it changes hands.
    for node in nodes(functions):
        if files.there(node):
            _try_open(files, node)
    for function in functions:
        _bind(files, function)
    settle(files)
    for node in nodes(functions):
        _try_open(files, node)
        try:
            files.own(node, user.uid, _ROOT)
        except OSError as error:
            raise _not_given(node, error) from error


def _try_open(files: Files, node: str) -> None:
    try:
        files.try_open(node)
    except OSError as error:
        raise _not_given(node, error) from error


def nodes(functions: Iterable[PassedFunction]) -> list[str]:
    """Of their groups."""
    return [f"dev/vfio/{group}" for group in sorted({f.group for f in functions})]


def settle(files: Files) -> None:
    """Nodes are new: udev gives them an owner and a mode of its own a moment later."""
    deadline = time.monotonic() + _SETTLE_S
    while files.there(_UDEV_BUSY) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _check_unchanged(files: Files, function: PassedFunction) -> None:
    """What was decided is still so: somebody may have pulled it out, or bound it elsewhere."""
    address = function.address
    if not files.there(f"{DEVICES}/{address}"):
        raise HostError(
            f"device {address} is not there any more", reason="DeviceMissing"
        )
    now, group = (
        driver_of(files, address),
        files.last(f"{DEVICES}/{address}/iommu_group"),
    )
    if now not in {function.driver, VFIO, ""} or group != str(function.group):
        raise HostError(
            f"device {address} was {function.driver or 'nobody'}'s in group "
            f"{function.group}, and is {now or 'nobody'}'s in group {group or 'none'} now",
            reason="DeviceChanged",
            resolution="start the sandbox again",
        )


def _bind(files: Files, function: PassedFunction) -> None:
    address, device = function.address, f"{DEVICES}/{function.address}"
    try:
        if override_of(files, address) != VFIO:
            files.write(f"{device}/driver_override", VFIO)
        now = driver_of(files, address)
        if now not in {"", VFIO}:
            files.write(f"{device}/driver/unbind", address)
        if now != VFIO:
            files.write(f"{DRIVERS}/{VFIO}/bind", address)
    except OSError as error:
        raise _not_given(f"device {address}", error) from error
    if driver_of(files, address) != VFIO:
        raise _not_given(f"device {address}", OSError(errno.ENODEV, "it is not bound"))


def _not_given(what: str, error: OSError) -> HostError:
    busy = error.errno == errno.EBUSY
    return HostError(
        f"{what} cannot be had from the host: {error.strerror or error}",
        detail=str(error),
        reason="DeviceInUse" if busy else "DeviceNotBound",
        resolution="see who has it (vmdriver devices ls, the kernel's log)",
    )


def take_back(files: Files, functions: tuple[PassedFunction, ...]) -> None:
    """All of them as they were. HostError for the first that is not; the others are."""
    problems: list[HostError] = []
    for group in sorted({f.group for f in functions}):
        members = [f for f in functions if f.group == group and _is_it(files, f)]
        try:
            ours = bool(members) and _take_node(files, members)
        except HostError as error:
            problems.append(error)
            continue
        for function in members if ours else ():
            try:
                _return(files, function)
            except HostError as error:
                problems.append(error)
    if problems:
        raise problems[0]


def _is_it(files: Files, function: PassedFunction) -> bool:
    """Not one that was pulled out, or that has the address since the host was restarted."""
    device = f"{DEVICES}/{function.address}"
    if files.last(f"{device}/iommu_group") == str(function.group):
        return True
    _log.warning("device %s is gone: nobody gets it back", function.address)
    return False


def _take_node(files: Files, members: list[PassedFunction]) -> bool:
    """Have a group's node be root's again. False: somebody else has it, and nothing of it is
    otherwise than it was: it was never ours, or is given back.
    """
    (node,) = nodes(members)
    try:
        if files.there(node):
            # Unbinding would wait for whoever has it open, and a reset would hit them.
            files.try_open(node)
            files.own(node, _ROOT, _ROOT)
    except OSError as error:
        if error.errno == errno.EBUSY and all(_is_as_before(files, f) for f in members):
            _log.warning("%s is open elsewhere and stays as it is", node)
            return False
        raise _not_returned(node, error, "DeviceNotReturned") from error
    return True


def _is_as_before(files: Files, function: PassedFunction) -> bool:
    now = driver_of(files, function.address), override_of(files, function.address)
    return now == (function.driver, function.override)


def _return(files: Files, function: PassedFunction) -> None:
    address, device = function.address, f"{DEVICES}/{function.address}"
    _reset(files, address)
    try:
        if driver_of(files, address) == VFIO != function.driver:
            files.write(f"{device}/driver/unbind", address)
        if override_of(files, address) != function.override:
            files.write(f"{device}/driver_override", function.override or "\n")
        if driver_of(files, address) == "" != function.driver:
            _bind_to_former(files, function)
    except OSError as error:
        if not files.there(device):
            return  # it was pulled out meanwhile
        raise _not_returned(f"device {address}", error, "DeviceNotReturned") from error


def _reset(files: Files, address: str) -> None:
    """What a machine has left in it goes before anybody else gets it. vfio-pci resets it too when
    its last user closes it, and keeps to itself whether that worked. Functions without a reset of
    their own are reset with their bus, by vfio-pci.
    """
    name = f"{DEVICES}/{address}/reset"
    if driver_of(files, address) != VFIO or not files.there(name):
        return
    try:
        files.write(name, "1")
    except OSError as error:
        what = f"device {address}"
        raise _not_returned(what, error, "DeviceNotReset") from error


def _bind_to_former(files: Files, function: PassedFunction) -> None:
    driver = f"{DRIVERS}/{function.driver}"
    if not files.there(driver):
        text = "device %s: its driver %s is not loaded any more; nobody drives it now"
        _log.warning(text, function.address, function.driver)
        return
    try:
        files.write(f"{driver}/bind", function.address)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        text = "device %s: %s does not take it any more; nobody drives it now"
        _log.warning(text, function.address, function.driver)


def _not_returned(what: str, error: OSError, reason: str) -> HostError:
    done = "reset" if reason == "DeviceNotReset" else "given back to the host"
    return HostError(
        f"{what} cannot be {done}: {error.strerror or error}",
        detail=str(error),
        reason=reason,
        resolution="it is tried again, and is nobody else's until then; where that does not help, "
        "restart the host",
    )
