"""What libvirt's errors are to the rest of the driver."""

from __future__ import annotations

import errno
import os

import libvirt
import pytest

from vmdriver.errors import DriverError, HypervisorError, StorageError
from vmdriver.hypervisor.connection import translated
from vmdriver.hypervisor.load_errors import is_checkpoints_fault


def system_error(number: int) -> libvirt.libvirtError:
    """As virReportSystemError makes it: the errno is its first number."""
    error = libvirt.libvirtError("cannot write data to file 'x.xml.new'")
    code, domain = libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_NONE
    text = f"cannot write data to file 'x.xml.new': {number}"
    error.err = (code, domain, text, libvirt.VIR_ERR_ERROR, "", "", "", number, -1)
    return error


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EACCES, HypervisorError),
    ],
)
def test_no_room_for_libvirts_own_files_is_told_from_what_a_machine_cannot_take(
    number: int, expected: type[DriverError]
) -> None:
    with pytest.raises(expected) as raised, translated("load box"):
        raise system_error(number)
    assert isinstance(raised.value, StorageError) == (expected is StorageError)


def said(text: str, code: int = libvirt.VIR_ERR_INTERNAL_ERROR) -> libvirt.libvirtError:
    error = libvirt.libvirtError(text)
    level, domain = libvirt.VIR_ERR_ERROR, libvirt.VIR_FROM_QEMU
    error.err = (code, domain, text, level, "%s", text, "", -1, -1)
    return error


CLOSED = "internal error: qemu unexpectedly closed the monitor"
STATE = (
    "2026-11-26T05:12:30.778672Z qemu-system-x86_64: error while loading state for "
    "instance 0x0 of device '0000:00:01.2/pcie-root-port'"
)
FAILED = "2026-11-26T05:12:30.778685Z qemu-system-x86_64: load of migration failed: "


@pytest.mark.parametrize(
    "text",
    [
        f"{CLOSED}: {STATE}\n{FAILED}Invalid argument",
        f"{CLOSED}: {FAILED}Operation not permitted\n",
        "job 'migration in' failed: load of migration failed: Invalid argument",
        "operation failed: guest CPU doesn't match specification: missing features: avx",
    ],
)
def test_qemus_own_word_on_a_state_is_the_checkpoints_fault(text: str) -> None:
    assert is_checkpoints_fault(said(text))


@pytest.mark.parametrize(
    "text",
    [
        CLOSED,
        "internal error: process exited while connecting to monitor",
        "internal error: Process exited prior to exec",
        "Unable to read from monitor: Connection reset by peer",
        f"{CLOSED}: can't open backing store /m for guest RAM: Permission denied",
        f"{CLOSED}: cannot set up guest memory 'ram': Cannot allocate memory",
        *(
            f"{CLOSED}: {STATE}\n{FAILED}{os.strerror(number)}"
            for number in (errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EMFILE)
        ),
    ],
)
def test_a_qemu_that_was_killed_or_could_not_be_started_says_nothing_of_its_checkpoint(
    text: str,
) -> None:
    assert not is_checkpoints_fault(said(text))


@pytest.mark.parametrize(
    "number", [errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.EINTR, errno.ENOSPC]
)
def test_what_libvirt_lacks_itself_says_nothing_of_the_checkpoint(number: int) -> None:
    assert not is_checkpoints_fault(system_error(number))
    assert not is_checkpoints_fault(said("out of memory", libvirt.VIR_ERR_NO_MEMORY))


def test_a_processor_that_does_not_fit_is_a_difference() -> None:
    code = libvirt.VIR_ERR_CPU_INCOMPATIBLE
    assert is_checkpoints_fault(said("the CPU is incompatible with host CPU", code))
