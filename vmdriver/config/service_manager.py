"""Whether a service manager has started this process. sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vmdriver.host.service_manager import ServiceManager


def service_manager(
    environment: Mapping[str, str] | None = None, pid: int | None = None
) -> ServiceManager:
    """What it has said in the environment; what is another process' counts for nothing."""
    said = os.environ if environment is None else environment  # noqa: TID251 - of config
    address = said.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return ServiceManager()
    own = str(os.getpid() if pid is None else pid)
    time_us = said.get("WATCHDOG_USEC", "")
    if said.get("WATCHDOG_PID", own) != own or not time_us.isdecimal():
        return ServiceManager(address)
    return ServiceManager(address, int(time_us) / 1e6)
