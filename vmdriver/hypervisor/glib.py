"""GLib, which libvirt is made with, and which has threads of its own."""

from __future__ import annotations

import ctypes
import logging

_log = logging.getLogger(__name__)
_NOBODY = b"unix:path=/dev/null/nobody"


def begin_worker() -> None:
    """Have GLib's own thread begin here and now: it begins when somebody first looks for a message
    bus, is never ended, and belongs to the network namespace of whoever that was. In libvirt that
    would be the first machine's start (measured, libvirt 9.0, GLib 2.74).
    """
    try:
        gio = ctypes.CDLL("libgio-2.0.so.0")
        connect = gio.g_dbus_connection_new_for_address_sync
    except (OSError, AttributeError) as error:
        _log.debug("GLib's worker is not begun: %s", error)
        return
    connect.restype = ctypes.c_void_p
    error_ = ctypes.c_void_p()
    connect(_NOBODY, 0, None, None, ctypes.byref(error_))
    gio.g_clear_error(ctypes.byref(error_))
