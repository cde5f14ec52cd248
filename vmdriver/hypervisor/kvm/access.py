"""Machines' right to use KVM: an entry for their common group in the device's access list.

udev makes the device anew with every load of the module, and knows nothing of machines; so it is
looked at before each start.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmdriver.errors import Refused
from vmdriver.host.users import access_list
from vmdriver.model.wall import ISOLATION_UNAVAILABLE

KVM_DEVICE = "/dev/kvm"


def let_in(gid: int, device: str | None = None) -> None:
    """Have the processes of a group use KVM. Refused, with the reason, where that cannot be."""
    device = device or KVM_DEVICE
    try:
        info = os.lstat(device)
        if stat.S_IMODE(info.st_mode) & 0o006 != 0o006:  # else everybody may
            access_list.allow(Path(device), "rw", gid=gid)
    except OSError as error:
        raise Refused(
            f"machines cannot be let use {device}: {error.strerror}",
            detail=f"an entry of its access list for group {gid} cannot be made",
            reason=ISOLATION_UNAVAILABLE,
            resolution=f"mount devtmpfs with access lists, or chmod 0666 {device}; or set "
            "accelerator to tcg",
        ) from error
