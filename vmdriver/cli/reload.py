"""What a driver does with SIGHUP."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vmdriver.config import Loaded
from vmdriver.errors import ConfigError
from vmdriver.host import log

_log = logging.getLogger(__name__)
AT_ONCE = ("log_level", "log_format")
"""Settings that are read again; machines and what they stand on go by the others."""


def reload(before: Loaded, again: Callable[[], Loaded]) -> None:
    """Take up what may change while the driver runs, and say what needs another one. A
    configuration that is wrong changes nothing. `before`: what the driver was made of.
    """
    try:
        now = again()
    except ConfigError as error:
        _log.error("the configuration stays as it was: %s", error.text())
        return
    log.set_up(now.config.driver.log_level, now.config.driver.log_format)
    was = before.values()
    changed = [key for key, value in now.values().items() if value != was[key]]
    waiting = [key for key in changed if key not in AT_ONCE]
    _log.info(
        "the configuration was read again; log_level %s, log_format %s",
        now.config.driver.log_level,
        now.config.driver.log_format,
    )
    if waiting:
        _log.warning(
            "%s: not as the driver was started, in force from the next start of the driver on "
            "(machines go on meanwhile)",
            ", ".join(waiting),
        )
