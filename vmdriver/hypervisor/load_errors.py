"""Why a machine could not be loaded: by its checkpoint's fault, or for whatever else.

Measured with QEMU 7.2 and libvirt 9.0: libvirt adds to its error what QEMU said last. Where QEMU
does not take a state it ends with "load of migration failed: " and an errno's text; where it was
killed, at any moment of the load, there is nothing of the kind ("qemu unexpectedly closed the
monitor", "Process exited prior to exec").
"""

from __future__ import annotations

import errno
import os
import re

import libvirt

_QEMUS_WORD = re.compile(r"load of migration failed: (?P<why>[^\n]+)")
_ANOTHER_CPU = "guest CPU doesn't match specification"
_MAY_PASS = (
    errno.EAGAIN,
    errno.EINTR,
    errno.EIO,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""The host's, not the checkpoint's, whose digests were right a moment ago. EIO may be either
(QEMU says so of a stream that ends too early): then the memory is kept.
"""
_TEXTS = {os.strerror(number) for number in _MAY_PASS}


def is_checkpoints_fault(error: libvirt.libvirtError) -> bool:
    """Whether QEMU, or libvirt for it, has said that this state is not for this machine."""
    if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
        return True
    text = error.get_error_message() or ""
    word = _QEMUS_WORD.search(text)
    if word is not None:
        return word["why"].strip() not in _TEXTS
    return _ANOTHER_CPU in text
