"""Names in a supervisor's environment that are not for users."""

from __future__ import annotations


def is_driver_owned(name: str) -> bool:
    """Environment names that neither users nor extensions may set."""
    return name.startswith(("OPENSHELL_", "VM_NET_"))
