"""What libvirt's errors are to the rest of the driver."""

from __future__ import annotations

import errno

import libvirt
import pytest

from vmdriver.errors import DriverError, HypervisorError, StorageError
from vmdriver.hypervisor.connection import translated


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
