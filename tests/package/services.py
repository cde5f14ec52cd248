"""Who runs vmdriver.service where the package is tried: a real systemd, or its stand-in; and what can be asked of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HEARD = Path("/run/systemctl.heard")
STAND_IN = Path("/usr/local/bin/systemctl")
begun = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - begun:6.1f} s] {text}", flush=True)


def run(*words: str, check: bool = True) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return done.stdout + ("" if check else done.stderr)


def must(true: object, text: str) -> None:
    if not true:
        raise SystemExit(f"NOT so: {text}")
    say(f"  {text}")


def becomes(there: Callable[[], object], text: str, most_s: float = 60) -> None:
    end = time.monotonic() + most_s
    while not (found := there()) and time.monotonic() < end:
        time.sleep(0.2)
    must(found, text)


class StandIn:
    """tests/package/systemctl."""

    def is_ready(self) -> bool:
        return HEARD.read_text().count("READY=1") == 1

    def has_reloaded(self) -> bool:
        return "RELOADING=1" in HEARD.read_text()

    def has_ended_well(self) -> bool:
        return "ENDED=0" in HEARD.read_text()


class Systemd:
    """The one that is the first process here."""

    def is_ready(self) -> bool:
        """Type=notify: it is active when the driver has said so."""
        return (self.asked("ActiveState"), self.asked("StatusText")) == (
            "active",
            "serving",
        )

    def has_reloaded(self) -> bool:
        return "Reloaded vmdriver.service" in self.journal() and self.is_ready()

    def has_ended_well(self) -> bool:
        """As systemd says since it was last told to end it."""
        _, told, since = self.journal().rpartition("Stopping vmdriver.service")
        good = "vmdriver.service: Deactivated successfully" in since
        return bool(told) and good and "Failed with result" not in since

    def asked(self, name: str) -> str:
        said = run("systemctl", "show", f"--property={name}", "vmdriver.service")
        return said.strip().partition("=")[2]

    def main_pid(self) -> int:
        return int(self.asked("MainPID"))

    def journal(self, *more: str) -> str:
        run("journalctl", "--sync")
        words = ["journalctl", "--unit=vmdriver.service", "--output=cat", *more]
        return run(*words, "--no-pager")


def service() -> StandIn | Systemd:
    return StandIn() if STAND_IN.exists() else Systemd()
