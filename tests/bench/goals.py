"""What is to be reached: every goal of every part, here and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

GUEST = ("guest takes its files", "guest starts")
"""Steps of a fork's in which the guest works, not we."""
Figures = Mapping[str, Any]
"""What a part measured, as its line of JSON says it."""


@dataclass(frozen=True)
class Goal:
    """One figure and its bound."""

    part: str
    name: str
    """Unique: histories go by part and name."""
    figure: Callable[[Any], float]
    """From the part's figures. KeyError: not measured this time."""
    bound: float
    unit: str = ""
    """Empty: a ratio."""
    at_least: bool = False


@dataclass(frozen=True)
class Judged:
    """A goal and what a run has reached of it."""

    goal: Goal
    value: float

    @property
    def met(self) -> bool:
        if self.goal.at_least:
            return self.value >= self.goal.bound
        return self.value <= self.goal.bound

    @property
    def share(self) -> float:
        """1 is the goal; more is worse, whichever way the bound goes."""
        value, bound = self.value, self.goal.bound
        return bound / value if self.goal.at_least else value / bound

    def shown(self) -> str:
        """The value with its unit."""
        return quantity(self.value, self.goal.unit)

    def bound(self) -> str:
        """The bound with its unit."""
        sign = "≥" if self.goal.at_least else "≤"
        return f"{sign} {quantity(self.goal.bound, self.goal.unit, exact=True)}"

    def text(self) -> str:
        """All of it on one line."""
        return f"{self.shown()} ({self.bound()}): {'met' if self.met else 'MISSED'}"


def quantity(value: float, unit: str, *, exact: bool = False) -> str:
    """With as many digits as mean something; `exact`: as it was written."""
    if exact:
        text = f"{value:g}"
    elif not unit:
        text = f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    else:
        text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return f"{text} {unit}".rstrip()


def judged(part: str, figures: Figures) -> list[Judged]:
    """The part's goals of which these figures say something."""
    found = []
    for goal in GOALS:
        if goal.part == part:
            with contextlib.suppress(KeyError):
                found.append(Judged(goal, float(goal.figure(figures))))
    return found


def at(*keys: str) -> Callable[[Any], float]:
    """The figure below these keys."""

    def look(figures: Any) -> float:
        for key in keys:
            figures = figures[key]
        return float(figures)

    return look


def quotient(upper: Callable[[Any], float], lower: Callable[[Any], float]) -> Any:
    """What the one is of the other."""
    return lambda figures: upper(figures) / lower(figures)


def difference(more: Callable[[Any], float], less: Callable[[Any], float]) -> Any:
    """What the one is more than the other."""
    return lambda figures: more(figures) - less(figures)


def times(factor: float, of: Callable[[Any], float]) -> Any:
    """For another unit."""
    return lambda figures: factor * of(figures)


RESUMES = {"256:64": 0.10, "1024:64": 0.12, "4096:64": 0.12, "4096:1024": 0.18}
STILL = (
    *("booted idle", "booted writing", "resumed idle", "resumed writing"),
    "disk only",
)
SHAPES = ("256 / 64 MiB", "1024 / 64 MiB", "4096 / 64 MiB", "4096 / 1024 MiB")


def _resumes() -> list[Goal]:
    found = []
    for shape, bound in RESUMES.items():
        of, thawed = f"resume, {shape} MiB", at("resume", shape, "thawed_s")
        cold, restore = (at("resume", shape, f"{k}_s") for k in ("cold", "restore"))
        found += [
            Goal("resume", f"{of}: of a cold boot", quotient(thawed, cold), bound),
            Goal("resume", f"{of}: of virsh restore", quotient(thawed, restore), 0.6),
        ]
    return found


def _shapes() -> list[Goal]:
    found = []
    for shape in SHAPES:
        write = quotient(at("shapes", shape, "suspend"), at("shapes", shape, "write"))
        still = {
            "booted": at("shapes", shape, "still_booted"),
            "resumed": at("shapes", shape, "still"),
        }
        size = at("shapes", shape, "size")
        found += [
            Goal("restore", f"suspend, {shape}: of QEMU's write", write, 1.2),
            *(
                Goal("restore", f"standstill, {shape}, {how}", times(1e3, of), 60, "ms")
                for how, of in still.items()
            ),
            Goal("restore", f"stored, {shape}: of QEMU's file", size, 1.1),
        ]
    return found


def _still() -> list[Goal]:
    found = []
    for shape in ("256 / 64 MiB", "1024 / 640 MiB", "4096 / 1024 MiB"):
        for how in STILL:
            bounds = (40, None) if how == "disk only" else (60, 150)
            for which, bound in zip(("median", "worst"), bounds, strict=True):
                if bound is not None:
                    name = f"stands still, {shape}, {how}: {which}"
                    of = times(1e3, at("still", shape, how, which))
                    found.append(Goal("still", name, of, bound, "ms"))
        suspension = ("still", shape, "suspension")
        write = quotient(at(*suspension, "median"), at(*suspension, "qemu"))
        found.append(Goal("still", f"suspend, {shape}: of QEMU's write", write, 1.2))
    return found


def _forks() -> list[Goal]:
    def of(upper: str, lower: str) -> Any:
        return quotient(at("fork_steps", upper), at("fork_steps", lower))

    def ours(kind: str) -> Any:
        """Without what the guest does meanwhile."""

        def sums(figures: Any) -> float:
            steps: dict[str, float] = figures["fork_steps"][f"{kind}_steps_ms"]
            return steps["all"] - sum(steps.get(step, 0.0) for step in GUEST)

        return sums

    return [
        Goal("forks", "fork of a template: of cold", of("fork_s", "cold_s"), 0.12),
        Goal("forks", "fork of the pool: of cold", of("claim_s", "cold_s"), 0.05),
        Goal("forks", "fork of a template: our share", ours("fork"), 220, "ms"),
        Goal("forks", "fork of the pool: our share", ours("claim"), 60, "ms"),
    ]


def _at_once() -> list[Goal]:
    return [
        Goal(
            "at_once",
            f"8 {kind}s at once: of one",
            quotient(
                at("at_once", f"eight {kind}", "s"), at("at_once", f"one {kind}", "s")
            ),
            4.5,
        )
        for kind in ("fork", "stop", "resume")
    ]


def _density() -> list[Goal]:
    pss = quotient(at("density", "fork_mib"), at("density", "cold_mib"))
    name = "idle fork's PSS without translated code: of cold"
    return [Goal("density", name, pss, 0.2)]


def _control() -> list[Goal]:
    def late(name: str, key: str, what: str, watching: str) -> Goal:
        figure = at("control", watching, f"{what}_{key}")
        return Goal("control", f"{name}: {what}, {watching} watch", figure, 20, "ms")

    by_the_clock = "loop late, p99", "lag_p99_ms"
    on_a_cpu = "loop late while it had a CPU, p99", "lag_own_p99_ms"
    return [
        late(*how, what, watching)
        for watching in ("1", "10", "50")
        for how, whats in (
            (by_the_clock, ("create", "list", "event", "delete")),
            (on_a_cpu, ("create", "delete")),
        )
        for what in whats
    ]


def _composed() -> list[Goal]:
    def added(call: str, through: str = "composed") -> Any:
        return difference(at(f"{call}_{through}_ms"), at(f"{call}_direct_ms"))

    rate = quotient(at("events_composed"), at("events_direct"))
    ten = added("validate", "10_extensions")
    return [
        Goal("compose", "Get: added", added("get"), 1, "ms"),
        Goal("compose", "Get, p99 of 32 at a time: added", added("crowd_p99"), 5, "ms"),
        Goal("compose", "Validate, 10 extensions: added", ten, 2, "ms"),
        Goal("compose", "events to a watcher: of the base's", rate, 0.8, at_least=True),
    ]


def _images() -> list[Goal]:
    found = []
    for key, name in (("small", "demo image"), ("large", "1 GiB, 50,000 files")):
        found += [
            Goal("images", f"{name}: of by hand", at(f"{key}_ratio"), 1.15),
            Goal("images", f"{name}: warm", at(f"{key}_warm_ms"), 20, "ms"),
            Goal("images", f"{name}: disk, of the tree", at(f"{key}_size_ratio"), 1.1),
        ]
    eight = quotient(at("eight_last_s"), at("eight_first_s"))
    return [
        *found,
        Goal("images", "8 at once: last, of the first", eight, 1.2),
        Goal(
            "images", "memory for the large one: added", at("rss_grown_mib"), 8, "MiB"
        ),
    ]


GOALS = (
    Goal("driver", "create, with the wall: of virsh start", at("lives", "ratio"), 1.25),
    *(
        Goal("driver", f"driver's own time, {n}", at("lives", "driver_ms", n), 60, "ms")
        for n in ("create", "stop", "start", "delete")
    ),
    Goal("driver", "start with 1,000 records", at("scale", "start_1000_s"), 3, "s"),
    Goal("starts", "libvirt's start: of it asking", at("starts", "start_ratio"), 0.4),
    Goal("starts", "libvirt's restore: of it asking", at("starts", "load_ratio"), 0.4),
    *_forks(),
    *_at_once(),
    *_shapes(),
    *_still(),
    *_resumes(),
    *_density(),
    *_control(),
    *_composed(),
    *_images(),
)
