"""What a table of settings says that each may be."""

from __future__ import annotations

import pytest

from vmdriver.compose.config import ComposeConfig
from vmdriver.config import SETTINGS
from vmdriver.config.allowed import allowed


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("accelerator", '"auto", "kvm", "tcg"'),
        ("live_snapshots", "true, false"),
        ("max_vcpus", "1 to 255"),
        ("mem_mib", "128 or more"),
        ("boot_timeout_s", "above 0 to 3600"),
        ("host_access", '"gateway", "all", a list of numbers'),
        ("egress_allow", "a list of texts"),
        ("allowed_image_dirs", "a list of paths"),
        ("host_mounts", "a list of tables"),
        ("supervisor_path", "a path"),
        ("extension", "a table"),
        ("krun_log_level", "a number"),
    ],
)
def test_a_setting_may_be_what_its_model_takes(setting: str, words: str) -> None:
    assert allowed(SETTINGS[setting]) == words


def test_nothing_is_said_of_no_setting() -> None:
    fields = {**SETTINGS, **ComposeConfig.model_fields}
    assert [name for name, field in fields.items() if not allowed(field)] == []
    assert [name for name, field in fields.items() if not field.description] == []
