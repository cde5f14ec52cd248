"""Whose a domain is, without asking its QEMU, which may hang."""

from __future__ import annotations

from typing import Any

import libvirt

from vmdriver.hypervisor.domain_reading import METADATA, read_mark


def mark_of(machine: Any) -> str:
    """Our mark in a domain's metadata, or "". Not by its whole XML: for that libvirt 11.3 waits
    where another call waits for QEMU's answer, 9.0 did not (both measured). libvirtError.
    """
    try:
        return read_mark(
            machine.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA)
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return ""
