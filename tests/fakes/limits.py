"""Limits of the driver that are no settings, for tests that cannot wait as long: where one is moved, this file
follows, and no test.
"""

from __future__ import annotations

import pytest

_CORE = "vmdriver.lifecycle"
_PLACES = {
    "cut_off_s": (f"{_CORE}.engine.underway._PATIENCE_S",),
    "undo_s": (f"{_CORE}.engine.ledger._PATIENCE_S",),
    "look_s": (f"{_CORE}.engine.worker._LOOK_PATIENCE_S",),
    "stalled_look_s": (
        *(f"{_CORE}.engine.worker.LOOK_S", f"{_CORE}.engine.standstill.LOOK_S"),
    ),
    "settle_s": (f"{_CORE}.engine.standstill._SETTLE_S",),
    "held_still_s": (f"{_CORE}.memory.held_still._FIRST_S",),
    "stop_s": (f"{_CORE}.control.manager._PATIENCE_S",),
    "stop_slack_s": (f"{_CORE}.control.manager._STOP_SLACK_S",),
    "delete_s": (f"{_CORE}.control.manager._DELETE_WAIT_S",),
    "consoles_every_s": (f"{_CORE}.control.maintenance._CONSOLE_INTERVAL_S",),
    "retention_every": (f"{_CORE}.control.maintenance._RETENTION_EVERY",),
    "removal_s": (f"{_CORE}.control.maintenance._REMOVAL_WAIT_S",),
    "upkeep_every_s": (f"{_CORE}.control.image_upkeep._INTERVAL_S",),
    "most_templates": (f"{_CORE}.templates.template._MOST",),
    "most_output": ("vmdriver.host.process._MOST_OUTPUT",),
    "read_s": ("vmdriver.storage.checkpoints._READ_S",),
    "command_silence_s": (f"{_CORE}.control.commands._SILENCE_S",),
    "command_still_s": (f"{_CORE}.control.commands._STILL_S",),
    "ready_s": ("vmdriver.service.servicer._READY_WAIT_S",),
}


def limit(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Each is this from now on, to the end of the test."""
    for name, value in limits.items():
        for place in _PLACES[name]:
            monkeypatch.setattr(place, value)
