"""The operator's settings: where they come from, what they may be, and what they mean to each
part of the driver.
"""

from vmdriver.config.model import SETTINGS, Config, config_of
from vmdriver.config.sources import (
    WITHOUT_MEANING,
    Loaded,
    hidden,
    load,
    process_environment,
    quiet_libraries,
)

__all__ = [
    "SETTINGS",
    "WITHOUT_MEANING",
    "Config",
    "Loaded",
    "config_of",
    "hidden",
    "load",
    "process_environment",
    "quiet_libraries",
]
