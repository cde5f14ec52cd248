"""A fake host whose files are real: what its guests say, remember and write is on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Set
from pathlib import Path
from typing import Any

from tests.fakes.earlier_state import EarlierState, write_tick
from tests.fakes.world import World
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import DomainState


class Files(Set[str]):
    """Every path that is there."""

    def __contains__(self, path: object) -> bool:
        return os.path.lexists(str(path))

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __ge__(self, needed: Any) -> bool:
        return all(path in self for path in needed)


class Reports(MutableMapping[str, GuestReport]):
    """By sandbox and file, as the fakes look for them; on the status disks."""

    def __init__(self, sandboxes: Path) -> None:
        self._sandboxes = sandboxes

    def __iter__(self) -> Iterator[str]:
        for path in self._sandboxes.glob("*/status.img"):
            yield str(path.relative_to(self._sandboxes))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, path: str) -> GuestReport:
        raise NotImplementedError("the adapter reads the disk")

    def __delitem__(self, path: str) -> None:
        raise NotImplementedError

    def __setitem__(self, path: str, report: GuestReport) -> None:
        text = f"phase={report.phase}\n" if report.phase else ""
        if report.exit_code is not None:
            text += f"code={report.exit_code}\n"
        with (self._sandboxes / path).resolve().open("r+b") as file:
            file.write(text.encode().ljust(4096, b"\0"))


class Memories(MutableMapping[str, int]):
    """Directory of a kept memory -> the guest's tick in it: in the file with its RAM."""

    def __getitem__(self, path: str) -> int:
        return int(Path(path, "memory").read_bytes().rstrip(b"\0").split()[1])

    def __setitem__(self, path: str, tick: int) -> None:
        with Path(path, "memory").open("wb") as file:
            file.write(f"tick {tick}\n".encode())
            file.truncate(2**20)

    def __delitem__(self, path: str) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Written(dict[str, int]):
    """Layer -> the tick that its guest wrote last; it is on the disk, too."""

    def __setitem__(self, layer: str, tick: int) -> None:
        super().__setitem__(layer, tick)
        write_tick(layer, tick)


def world_of(state: EarlierState, *, rebooted: bool = False) -> World:
    """The host as the earlier driver left it. `rebooted`: with nothing in it that does not outlive that."""
    host = {} if rebooted else state.host
    world = World(
        files=Files(),  # type: ignore[arg-type]
        reports=Reports(state.root / "state" / "sandboxes"),  # type: ignore[arg-type]
        memories=Memories(),  # type: ignore[arg-type]
        written=Written(state.host["written"]),
        taps=host.get("taps", {}),
        tables=host.get("tables", {}),
        marks=host.get("marks", {}),
        ticks=host.get("ticks", {}),
        frozen=set(host.get("frozen", ())),
        root_layers=host.get("root_layers", {}),
        known_layers=dict(host.get("root_layers", {})),
    )
    for domain, is_now in host.get("domains", {}).items():
        world.domains[domain] = DomainState(is_now)
    return world
