"""What an operator has decided in tests: the defaults, through the driver's own translation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vmdriver.config import config_of
from vmdriver.config.views import image_policy, settings_from
from vmdriver.oci.policy import ImagePolicy

SETTINGS = dataclasses.replace(
    settings_from(
        config_of(
            {
                "instance": "test",
                "state_dir": "/state",
                "supervisor_path": "/supervisor",
                "max_vcpus": 64,
                "max_mem_mib": 2**20,
                "max_committed_mem_mib": 2**20,
                "dns": [],
                "templates_enabled": False,
                "prefetch_default_image": False,
                "default_image": "",
                "supervisor_image": "",
                "image_cache_days": 0,
                "image_free_floor_mib": 0,
            }
        )
    ),
    recheck_s=0.5,
)
"""The operators' defaults, but for what depends on this host or would go on by itself."""


def image_rules(
    insecure_registries: tuple[str, ...] = (),
    allowed_directories: tuple[Path, ...] = (),
    **changes: Any,
) -> ImagePolicy:
    """The operators' defaults for images, but for what is named."""
    return dataclasses.replace(
        image_policy(config_of({})),
        insecure_registries=insecure_registries,
        allowed_directories=allowed_directories,
        **changes,
    )
