"""libvirt's states of a domain, in our words."""

from __future__ import annotations

import libvirt

from vmdriver.model.phase import DomainState

_RUNNING = {
    libvirt.VIR_DOMAIN_RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED,
    libvirt.VIR_DOMAIN_SHUTDOWN,
}
_PAUSED_BY_ITSELF = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: DomainState.STALLED,
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: DomainState.CRASHED,
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: DomainState.RUNNING,
}
"""By libvirt's reason. Of the others we are the cause, or an operator is."""


def domain_state(state: int, reason: int) -> DomainState:
    """Of what `virDomainGetState` says."""
    if state in _RUNNING:
        return DomainState.RUNNING
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in _PAUSED_BY_ITSELF:
        return _PAUSED_BY_ITSELF[reason]
    if state in {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}:
        return DomainState.PAUSED
    return (
        DomainState.CRASHED if state == libvirt.VIR_DOMAIN_CRASHED else DomainState.OFF
    )
