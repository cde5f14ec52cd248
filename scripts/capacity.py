"""How many sandboxes a host takes, how many hosts they need, and what all of it asks of memory, registry and gateway: plain
arithmetic with your figures, with what was measured (docs/measured.json) where you give none.

usage: .venv/bin/python scripts/capacity.py [--hosts N] [--sandboxes N] [--FIGURE VALUE]... [--json]; --help has every figure.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vmdriver.config import SETTINGS  # noqa: E402 - from this checkout

MEASURED = ROOT / "docs" / "measured.json"
STORE_ROWS = 500
"""Of its store a gateway reads so many rows in a sweep (upstream, `reconcile_store_with_backend`)."""
AT_ONCE = 8
_HOUR_S, _MBIT_PER_MIB = 3600.0, 8 * 2**20 / 1e6
Figures = Mapping[str, float | str | None]


class BadFigure(ValueError):
    """A figure that cannot be: its name, and why."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name


@dataclass(frozen=True)
class Kind:
    """What idle machines of one kind take, in MiB: each, of that translated code and guest's memory, and all once."""

    each: float
    code: float
    guest: float
    common: float


@dataclass(frozen=True)
class Measured:
    """What of docs/measured.json the model needs. None: not measured yet."""

    memory_mib: int
    host_memory_mib: int
    cores: int
    accelerator: str
    kinds: Mapping[str, Kind]
    starts_per_hour: Mapping[str, float]
    """fork: eight at a time, with all cores; cold: one after the other."""
    disk_ratio: float
    """An image's disk, of its unpacked tree."""
    get_cpu_ms: float | None
    creates_per_hour: float | None
    """Of a driver whose machines start at once: what it is bounded by itself."""

    @staticmethod
    def read(path: Path | None = None) -> Measured:
        """KeyError: a part that the model needs is missing."""
        return Measured.of(json.loads((path or MEASURED).read_text()))

    @staticmethod
    def of(runs: Mapping[str, Any]) -> Measured:
        """By part, as that file has them. KeyError, as above."""
        density, machine = runs["density"]["figures"]["density"], runs["density"]
        at_once = runs["at_once"]["figures"]["at_once"]
        control = runs.get("control", {}).get("figures", {}).get("control", {})
        gets = [each["get_cpu_ms"] for each in control.values()]
        made = [each["create_per_s"] for each in control.values()]
        return Measured(
            memory_mib=density["memory_mib"],
            host_memory_mib=machine["machine"]["memory_gib"] * 1024,
            cores=at_once["cores"],
            accelerator=machine["machine"]["accelerator"],
            kinds={kind: _kind(density[kind]) for kind in ("fork", "cold")},
            starts_per_hour={
                "fork": AT_ONCE * _HOUR_S / at_once["eight fork"]["s"],
                "cold": _HOUR_S / runs["forks"]["figures"]["fork_steps"]["cold_s"],
            },
            disk_ratio=runs["images"]["figures"]["small_size_ratio"],
            get_cpu_ms=max(gets) if gets else None,
            creates_per_hour=min(made) * _HOUR_S if made else None,
        )


def _kind(found: Any) -> Kind:
    each = dict(found["each_mib"])
    code = each.pop("code")  # of "own"
    guest = found["at"][str(found["count"])]["guest's memory"]
    return Kind(sum(each.values()), code, guest, found["shared_mib"])


@dataclass(frozen=True)
class Figure:
    """One that an operator may give. `default`: without it; None: the model finds it."""

    name: str
    says: str
    default: Callable[[Measured], float | str | None]
    source: str = "assumed"
    low: float = 0.0
    high: float = 1e9
    whole: bool = False
    choices: tuple[str, ...] = ()

    def checked(self, value: object) -> float | str | None:
        """BadFigure with this one's name."""
        if self.choices:
            if value not in self.choices:
                raise BadFigure(
                    self.name, f"one of {', '.join(self.choices)}, not {value!r}"
                )
            return str(value)
        try:
            number = float(str(value))
        except ValueError:
            raise BadFigure(self.name, f"{value!r} is not a number") from None
        if not self.low <= number <= self.high:  # nor nan
            raise BadFigure(
                self.name, f"from {self.low:g} to {self.high:g}, not {value}"
            )
        if self.whole and number != int(number):
            raise BadFigure(self.name, f"a whole number, not {value}")
        return int(number) if self.whole else number


def _setting(name: str) -> Any:
    return SETTINGS[name].default


FIGURES = (
    Figure("hosts", "how many there are (without: as many as the sandboxes need, else one)", lambda _: None, "found", 1, 1e5, whole=True),
    Figure("sandboxes", "how many there are to be (without: as many as fit)", lambda _: None, "found", 1, 1e8, whole=True),
    Figure("host_memory_mib", "memory of one host", lambda m: m.host_memory_mib, "measured on", 512),
    Figure("host_cores", "cores of one host", lambda m: m.cores, "measured on", 1, 4096, whole=True),
    Figure("reserved_mib", "of it, for the host itself and the driver", lambda _: 1024.0),
    Figure("committed_mib", "max_committed_mem_mib (without: the host's memory)", lambda _: None, "setting", 1),
    Figure("memory_mib", "memory that one sandbox is given", lambda m: m.memory_mib, "measured with", 64, whole=True),
    Figure("busy", "share of the sandboxes that work, 0 to 1; the others idle", lambda _: 0.25, high=1),
    Figure("busy_memory_mib", "memory that one touches which works (without: all of memory_mib)", lambda _: None, "found"),
    Figure("start", "how sandboxes begin", lambda _: "fork", choices=("fork", "cold")),
    Figure("accelerator", "kvm: without what TCG takes for translated code", lambda m: m.accelerator, "measured with", choices=("tcg", "kvm")),
    Figure("templates", "different images and shapes on one host, a template each", lambda _: 1, low=1, high=1e4, whole=True),
    Figure("images", "different images on one host", lambda _: 1, low=1, high=1e4, whole=True),
    Figure("image_mib", "of one image, as a registry sends it", lambda _: 400.0),
    Figure("unpacked_mib", "of one image, unpacked", lambda _: 1000.0),
    Figure("new_images", "new versions of an image in a day", lambda _: 1.0),
    Figure("churn", "how often a sandbox is replaced by a new one in an hour", lambda _: 1.0, high=3600),
    Figure("registry_mbit", "what the registry sends in all, Mbit/s", lambda _: 1000.0, low=0.001),
    Figure("refresh_s", "image_refresh_s", lambda _: _setting("image_refresh_s"), "setting"),
    Figure("reconcile_s", "the gateway's interval between two sweeps", lambda _: 60.0, "upstream", 0.1),
    Figure("gateways", "one for each host, or one before a cluster", lambda _: "per-host", choices=("per-host", "one")),
)  # fmt: skip
BY_NAME = {figure.name: figure for figure in FIGURES}


@dataclass(frozen=True)
class Row:
    """One answer, and how it came about. `value`: a number or a word; None: not known."""

    says: str
    value: Any
    unit: str
    how: str


@dataclass(frozen=True)
class Answer:
    """`figures`: with which; `sources`: whose each was; `rows` by a name that stays."""

    figures: Figures
    sources: Mapping[str, str]
    rows: Mapping[str, Row]
    notes: Sequence[str] = field(default=())

    def value(self, name: str) -> Any:
        """Of one answer."""
        return self.rows[name].value


def answer(given: Mapping[str, object], measured: Measured) -> Answer:
    """BadFigure names the one that cannot be."""
    figures: dict[str, Any] = {}
    sources = {}
    for name in given:
        if name not in BY_NAME:
            raise BadFigure(name, f"is none of {', '.join(BY_NAME)}")
    for figure in FIGURES:
        value = given.get(figure.name)
        told = value is not None
        figures[figure.name] = (
            figure.checked(value) if told else figure.default(measured)
        )
        sources[figure.name] = "given" if told else figure.source
    if figures["committed_mib"] is None:
        figures["committed_mib"] = figures["host_memory_mib"]
    if figures["busy_memory_mib"] is None:
        figures["busy_memory_mib"] = figures["memory_mib"]
    if figures["busy_memory_mib"] > figures["memory_mib"]:
        raise BadFigure(
            "busy_memory_mib", "more than memory_mib, which is all that a sandbox has"
        )
    if figures["reserved_mib"] >= figures["host_memory_mib"]:
        raise BadFigure("reserved_mib", "is all of host_memory_mib")
    rows: dict[str, Row] = {}
    notes: list[str] = []
    for part in (_density, _hosts, _sharing, _images, _starts, _reconcile):
        part(figures, measured, rows, notes)
    return Answer(figures, sources, rows, notes)


Rows = dict[str, Row]


def _each(f: Any, measured: Measured, start: str) -> tuple[float, float, float]:
    """MiB of one that idles, of one as they are on average, and of all once."""
    kind = measured.kinds[start]
    idle = kind.each - (kind.code if f["accelerator"] == "kvm" else 0.0)
    works = max(idle, idle - kind.guest + f["busy_memory_mib"])
    common = kind.common * (f["templates"] if start == "fork" else 1)
    return idle, (1 - f["busy"]) * idle + f["busy"] * works, common


def _density(f: Any, measured: Measured, rows: Rows, notes: list[str]) -> None:
    idle, mean, common = _each(f, measured, f["start"])
    free = f["host_memory_mib"] - f["reserved_mib"]
    pool = ipaddress.ip_network(_setting("address_pool"))
    bounds = {
        "host_memory_mib": (math.floor((free - common) / mean), f"({free:.0f} - {common:.0f}) / {mean:.1f} MiB"),
        "committed_mib": (math.floor(f["committed_mib"] / f["memory_mib"]), f"{f['committed_mib']:.0f} / {f['memory_mib']} MiB"),
        "max_sandboxes": (_setting("max_sandboxes"), "the setting's default"),
        "address_pool": (pool.num_addresses // 4, f"the default {pool}, four addresses each"),
    }  # fmt: skip
    binding = min(bounds, key=lambda name: bounds[name][0])
    most = int(bounds[binding][0])
    if most < 1:
        raise BadFigure(binding, f"not one sandbox fits: {bounds[binding][1]}")
    rows["mib_idle"] = Row(
        "memory of an idle one",
        idle,
        "MiB",
        f"measured, {f['start']}, {f['accelerator']}",
    )
    how = f"{1 - f['busy']:g} x {idle:.1f} + {f['busy']:g} x one that works"
    rows["mib_each"] = Row("memory of one, on average", mean, "MiB", how)
    rows["per_host"] = Row(
        "sandboxes that fit on one host", most, "", f"{binding}: {bounds[binding][1]}"
    )
    rows["by_memory"] = Row(
        "sandboxes that its memory alone would hold",
        bounds["host_memory_mib"][0],
        "",
        bounds["host_memory_mib"][1],
    )
    rows["bound"] = Row(
        "what bounds them",
        binding,
        "",
        "; ".join(f"{n}: {b[0]}" for n, b in bounds.items()),
    )
    if binding == "committed_mib":
        notes.append(
            f"max_committed_mem_mib bounds a host, not its memory, which would hold {bounds['host_memory_mib'][0]}: raise it, "
            "if what sandboxes touch at most together is known"
        )


def _hosts(f: Any, _m: Measured, rows: Rows, notes: list[str]) -> None:
    most = rows["per_host"].value
    hosts, wanted = f["hosts"], f["sandboxes"]
    if hosts is None:
        hosts = 1 if wanted is None else math.ceil(wanted / most)
    all_ = hosts * most
    served = all_ if wanted is None else min(all_, wanted)
    how = "given" if f["hosts"] else "one" if wanted is None else f"{wanted} / {most}"
    rows["hosts"] = Row("hosts", hosts, "", how)
    rows["sandboxes"] = Row(
        "sandboxes on them", served, "", f"at most {hosts} x {most}"
    )
    rows["on_one"] = Row(
        "sandboxes on one of them", math.ceil(served / hosts), "", f"{served} / {hosts}"
    )
    if wanted is not None and wanted > served:
        lacking = math.ceil(wanted / most) - hosts
        notes.append(f"{wanted - served} sandboxes do not fit: {lacking} more hosts")


def _sharing(f: Any, measured: Measured, rows: Rows, _n: list[str]) -> None:
    count, hosts = rows["on_one"].value, rows["hosts"].value
    _, mean, common = _each(f, measured, f["start"])
    _, cold_mean, cold_common = _each(f, measured, "cold")
    taken, cold = common + count * mean, cold_common + count * cold_mean
    how = f"{f['templates']} x {measured.kinds['fork'].common:.1f}"
    if f["start"] == "cold":
        how = "programs and libraries"
    rows["mib_common"] = Row("in common on one host", common, "MiB", how)
    rows["mib_taken"] = Row(
        "taken on one host", taken, "MiB", f"{common:.0f} + {count} x {mean:.1f}"
    )
    how = f"{cold_common:.0f} + {count} x {cold_mean:.1f} booted, less {taken:.0f}"
    rows["mib_saved"] = Row("saved by templates on one host", cold - taken, "MiB", how)
    saved = hosts * (cold - taken) / 1024
    rows["gib_saved"] = Row(
        "saved by templates, all hosts",
        saved,
        "GiB",
        f"{hosts} x {cold - taken:.0f} MiB",
    )


def _images(f: Any, measured: Measured, rows: Rows, _n: list[str]) -> None:
    hosts, size, images = rows["hosts"].value, f["image_mib"], f["images"]
    once = hosts * size / 1024
    rows["gib_first"] = Row(
        "registry sends until every host has all",
        images * once,
        "GiB",
        f"{hosts} x {images} x {size:g} MiB",
    )
    rows["gib_new"] = Row(
        "registry sends for a new version", once, "GiB", f"{hosts} x {size:g} MiB"
    )
    took = hosts * size * _MBIT_PER_MIB / f["registry_mbit"]
    how = f"{hosts} x {size:g} MiB at {f['registry_mbit']:g} Mbit/s"
    rows["new_s"] = Row("until the last host has a new version", took, "s", how)
    daily = f["new_images"] * once
    rows["gib_day"] = Row(
        "registry sends in a day",
        daily,
        "GiB",
        f"{f['new_images']:g} versions x {once:.1f}",
    )
    disk = images * f["unpacked_mib"] * measured.disk_ratio / 1024
    how = f"{images} x {f['unpacked_mib']:g} MiB x {measured.disk_ratio:.2f} measured"
    rows["gib_disk"] = Row("disk of images on one host", disk, "GiB", how)


def _starts(f: Any, measured: Measured, rows: Rows, notes: list[str]) -> None:
    hosts = rows["hosts"].value
    here = rows["on_one"].value * f["churn"]
    rows["starts"] = Row(
        "new sandboxes on one host",
        here,
        "an hour",
        f"{rows['on_one'].value} x {f['churn']:g}",
    )
    asked = here
    if f["refresh_s"]:
        asked = min(here, f["images"] * _HOUR_S / f["refresh_s"])
    how = f"{hosts} x min({here:g} creates, {f['images']} each {f['refresh_s']:g} s)"
    rows["lookups"] = Row(
        "tags that the registry is asked for", hosts * asked, "an hour", how
    )
    rate, how = _most_starts(f, measured)
    rows["most_starts"] = Row(
        "new sandboxes that one host can begin", rate, "an hour", how
    )
    share = None if rate is None else here / rate
    rows["starts_share"] = Row(
        "of a host's time for starts", share, "", "new ones / those it can begin"
    )
    if share is not None and share > 1:
        notes.append("churn: more sandboxes are begun than a host can")


def _most_starts(f: Any, measured: Measured) -> tuple[float | None, str]:
    """In an hour, and how. More cores than were measured count only as far as the driver itself was measured."""
    if f["accelerator"] != measured.accelerator:
        return None, "not measured on KVM"
    rate = measured.starts_per_hour[f["start"]]
    if f["start"] == "cold":
        return rate, "one after the other"
    scale, most = f["host_cores"] / measured.cores, measured.creates_per_hour
    if scale > 1 and most is None:
        return rate, f"{AT_ONCE} at a time, as measured on {measured.cores} cores"
    how = f"{AT_ONCE} at a time, {measured.cores} cores measured, x {scale:g}"
    if most is not None and rate * scale > most:
        return most, "what the driver does on a host whose machines start at once"
    return rate * scale, how


def _reconcile(f: Any, measured: Measured, rows: Rows, notes: list[str]) -> None:
    gateways = rows["hosts"].value if f["gateways"] == "per-host" else 1
    behind = math.ceil(rows["sandboxes"].value / gateways)
    calls = (1 + behind) * 60 / f["reconcile_s"]
    rows["gateways"] = Row("gateways", gateways, "", f["gateways"])
    rows["behind"] = Row(
        "sandboxes behind one gateway",
        behind,
        "",
        f"{rows['sandboxes'].value} / {gateways}",
    )
    how = f"(a list + {behind} gets) each {f['reconcile_s']:g} s"
    rows["calls"] = Row("calls of its sweeps", calls, "a minute", how)
    cpu = measured.get_cpu_ms
    share = None if cpu is None else behind * cpu / f["reconcile_s"] / 1000
    how = (
        "not measured yet"
        if cpu is None
        else f"{behind} x {cpu:.2f} ms each {f['reconcile_s']:g} s"
    )
    rows["calls_share"] = Row("of one core, in the driver, for them", share, "", how)
    if behind > STORE_ROWS:
        notes.append(
            f"a gateway's sweep reads {STORE_ROWS} rows of its store: of the {behind} sandboxes behind one, those beyond "
            "them are not missed by it when their driver has lost them"
        )


def shown(value: float | str | None) -> str:
    """For people."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def _text(found: Answer) -> Iterator[str]:
    yield "with"
    for name, value in found.figures.items():
        if value is not None:
            yield f"  {name:<18} {value!s:<10} {found.sources[name]}"
    yield "so"
    for row in found.rows.values():
        yield f"  {row.says:<40} {shown(row.value):>16} {row.unit:<8} = {row.how}"
    for note in found.notes:
        yield f"note: {note}"


HOSTS = (1, 10, 100, 1000)
_TABLE = (
    "sandboxes", "per_host", "bound", "by_memory", "mib_common", "mib_saved", "gib_saved", "gib_first", "gib_new", "new_s", "gib_disk",
    "starts", "starts_share", "lookups", "gateways", "calls", "calls_share",
)  # fmt: skip


def table(measured: Measured) -> Iterator[str]:
    """What docs/scale.md says of some numbers of hosts, all of them full, with every figure's default."""
    found = [answer({"hosts": hosts}, measured) for hosts in HOSTS]
    yield f"| hosts | {' | '.join(f'{hosts:,}' for hosts in HOSTS)} |"
    yield f"| {' | '.join(['---'] * (1 + len(HOSTS)))} |"
    for name in _TABLE:
        row = found[0].rows[name]
        unit = f", {row.unit}" if row.unit else ""
        cells = (shown(each.value(name)) for each in found)
        yield f"| {row.says}{unit} | {' | '.join(cells)} |"
    one = [answer({"hosts": hosts, "gateways": "one"}, measured) for hosts in HOSTS]
    cells = (shown(each.value("calls")) for each in one)
    yield f"| the same with one gateway before a cluster, a minute | {' | '.join(cells)} |"
    yield ""
    with_ = (
        f"`{name}` {value} ({found[0].sources[name]})"
        for name, value in found[0].figures.items()
        if value is not None and name not in {"hosts", "gateways"}
    )
    yield f"With {', '.join(with_)}."


def main(arguments: Sequence[str]) -> int:
    """2: a figure that cannot be. 1: what it stands on is not measured."""
    parser = argparse.ArgumentParser(prog="capacity.py", description=__doc__)
    for figure in FIGURES:
        parser.add_argument(
            f"--{figure.name.replace('_', '-')}",
            metavar="VALUE",
            help=f"{figure.says} [{figure.source}]",
        )
    parser.add_argument("--json", action="store_true", help="for programs")
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    try:
        found = answer(
            {k: v for k, v in given.items() if v is not None}, Measured.read()
        )
    except KeyError as missing:
        told = f"{MEASURED} has no {missing}: scripts/bench --keep measures it"
        print(f"capacity: {told}", file=sys.stderr)
        return 1
    except BadFigure as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found), indent=1) if as_json else "\n".join(_text(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
