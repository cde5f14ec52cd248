"""The parts of the bench: which there are, what each says, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One module of this package, with `measure(rounds, chosen)`, which returns its figures (a dictionary that
    JSON can hold, whose keys stay), `show(figures)`, which prints them, and, if it takes more than
    `--rounds`, `options(parser)`.
    """

    name: str
    says: str
    minutes: float
    """Of the clock, with 5 rounds, on 2 cores under TCG that nobody else uses."""

    @property
    def limit_s(self) -> float:
        """After that long it is ended, and has failed; for 5 rounds."""
        return 60 * max(5.0, 3 * self.minutes)


PARTS = (
    Part("driver", "RPCs, watchers, a machine's life against plain libvirt", 4),
    Part("wall", "each part of the wall around a machine, by itself", 0.5),
    Part("starts", "libvirt's questions about a CPU: asked, and spared", 2),
    Part("steps", "where a cold boot, fork, resume and snapshot go", 2),
    Part("forks", "what a fork waits for", 2),
    Part("at_once", "eight forks, stops and resumes at once, against one", 2.5),
    Part("restore", "suspend, resume, snapshot against libvirt and QEMU", 10),
    Part("still", "for how long a workload stands still while it is kept", 8),
    Part("resume", "StartSandbox to thawed, against virsh restore", 8),
    Part("density", "what idle sandboxes take of the host's memory, and why", 5),
    Part("control", "200 sandboxes created, listed, watched, deleted", 2),
    Part("compose", "a composed driver against its base", 1.5),
    Part("images", "images against the same tools by hand", 8),
)
BY_NAME = {part.name: part for part in PARTS}
