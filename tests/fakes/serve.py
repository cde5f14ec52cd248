"""The command line of a driver process, as the benchmark and the system tests start it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
WORK = ROOT / ".work"
SERVE = [str(BIN / "vmdriver"), "serve"]


def arguments(
    state: Path, socket: Path, instance: str, endpoint: str, registry: str, *more: str
) -> list[str]:
    """Flags for small sandboxes with the stand-in supervisor; later ones win."""
    return [
        *(
            "--state-dir",
            str(state),
            "--bind-socket",
            str(socket),
            "--instance",
            instance,
        ),
        *("--openshell-endpoint", endpoint, "--insecure-registries", registry),
        *("--supervisor-path", str(ROOT / "images" / "stand-in-supervisor")),
        *("--vcpus", "1", "--mem-mib", "512"),
        *more,
    ]
