"""What is known of one sandbox as a page for people, made of the document for machines.

Guests, images and requests have said much of it: it goes to a terminal as `words` only.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmdriver.cli.terminal import BAD, DIM, GOOD, HEAD, WARN, Styled, Words, words
from vmdriver.cli.waterfall import stood_still_ms, way
from vmdriver.cli.wording import moment, size, span, took
from vmdriver.model.checkpoint import SnapshotEntry
from vmdriver.model.runs import RestoreKind
from vmdriver.model.timing import StartTiming

if TYPE_CHECKING:
    from rich.console import RenderableType

Document = Mapping[str, Any]
_STYLES = {
    "running": GOOD,
    "failed": BAD,
    "failing": BAD,
    "stopped": DIM,
    "suspended": DIM,
}
_HELD = {
    "runtime": "while the machine runs",
    "capture": "while memory or disk are kept",
    "attached": "while its machine, or kept memory, has it",
    "persistent": "until the sandbox is deleted",
}
_FROM_MEMORY = {RestoreKind.RESUMED, RestoreKind.SNAPSHOT}
_CONSOLE_LINES = 12


@dataclass(frozen=True)
class Section:
    """A part of the page: labels with their values, or lines of text."""

    title: str
    rows: Sequence[tuple[str, Words]] = ()
    lines: Sequence[str] = ()


def phase_style(phase: str) -> str:
    """How a phase looks; one that passes is yellow."""
    return _STYLES.get(phase, WARN)


def page(sandbox_id: str, found: Document, now: datetime) -> list[Section]:
    """Those that have something to say. `found`: as `vmdriver inspect --json` prints it."""
    record = found["record"]
    plan = record["plan"] if record else None
    sections = [Section(_title(sandbox_id, found), [*_sandbox(sandbox_id, found, now)])]
    if record:
        sections.append(Section("image", [*_image(record)]))
    sections.append(Section("machine", [*_machine(found["machine"], plan)]))
    network = [*_network(sandbox_id, found["addresses"], plan)]
    sections.append(Section("network", network))
    sections.append(Section("guest", [*_guest(found["guest"])]))
    if record:
        last_start = [*_last_start(sandbox_id, record, now)]
        sections.append(Section("last start", last_start))
        sections.append(Section("kept memory", [*_memory(record)]))
        sections.append(Section("snapshots", [*_snapshots(record, now)]))
    sections.append(Section("held on this host", [*_held(found["ledger"])]))
    console = found["console_tail"].splitlines()[-_CONSOLE_LINES:]
    sections.append(Section("console (its end)", lines=console))
    return [section for section in sections if section.rows or section.lines]


def rendered(sections: Sequence[Section]) -> RenderableType:
    """For rich: titles, and below each of them its values in a column."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table

    parts: list[RenderableType] = []
    for section in sections:
        parts += [words("")] if parts else []
        parts.append(words(Styled(section.title, HEAD)))
        if section.rows:
            grid = Table.grid(padding=(0, 2, 0, 0))
            # Folded as well: names that extensions give leave room for what is said of them.
            grid.add_column(min_width=12, overflow="fold")
            grid.add_column(overflow="fold")
            for label, value in section.rows:
                # Lines of somebody else's stay in their column: none is taken for ours.
                grid.add_row(words(Styled(label, DIM)), words(value, keep="\n"))
            parts.append(Padding(grid, (0, 0, 0, 2), expand=False))
        parts += [words("  ", line) for line in section.lines]
    return Group(*parts)


def _title(sandbox_id: str, found: Document) -> str:
    named = found["record"]["spec"] if found["record"] else found["unreadable"]
    return (named["name"] if named else "") or sandbox_id


def _when(text: str, now: datetime) -> str:
    return moment(datetime.fromisoformat(text), now)


def _sandbox(
    sandbox_id: str, found: Document, now: datetime
) -> Iterator[tuple[str, Words]]:
    record, unreadable = found["record"], found["unreadable"]
    yield "id", sandbox_id
    workspace = (record["spec"] if record else unreadable)["workspace"]
    if workspace:
        yield "workspace", workspace
    if unreadable:
        text = f"{unreadable['reason']}: {'; '.join(unreadable['problems'])}"
        yield "failure", Styled(text, BAD)
        yield "what to do", unreadable["resolution"]
    if record:
        yield from _state(record, now)
    yield "directory", found["directory"]


def _state(record: Document, now: datetime) -> Iterator[tuple[str, Words]]:
    phase, intent = record["phase"], record["intent"]
    yield "phase", Styled(phase, phase_style(phase))
    yield "asked for", intent
    yield "since", _when(record["changed_at"], now)
    yield "created", _when(record["created_at"], now)
    if record["launches"]:
        crashes = record["crash_restarts"]
        after = f", the last {crashes} after a crash" if crashes else ""
        yield "launches", f"{record['launches']}{after}"
    if failure := record["failure"]:
        yield "failure", Styled(f"{failure['reason']}: {failure['message']}", BAD)
        if failure["exit_code"] is not None:
            yield "exit code", str(failure["exit_code"])
        if failure["will_retry"]:
            yield "", "it is tried again"
    if record["reverting"]:
        yield "returns to", f"snapshot {record['reverting']}"
    if record["network_broken"]:
        yield "network", Styled(f"broken: {record['network_broken']}", BAD)
    if record["note"]:
        yield "note", Styled(record["note"], WARN)
    if record["extensions"]["active"]:
        yield "extensions", ", ".join(record["extensions"]["active"])
    for key, value in record["spec"]["labels"].items():
        yield "label", f"{key} = {value}"


def _image(record: Document) -> Iterator[tuple[str, Words]]:
    """What it says of itself decides nothing but the environment."""
    says = record["image_config"]
    yield "reference", record["spec"]["image"]
    if record["image_digest"]:
        yield "digest", record["image_digest"]
    for name, key in (("USER", "user"), ("WORKDIR", "working_directory")):
        if says[key]:
            yield name, says[key]
    for name, key in (("ENTRYPOINT", "entrypoint"), ("CMD", "command")):
        if says[key]:
            yield name, shlex.join(says[key])


def _machine(machine: Document, plan: Document | None) -> Iterator[tuple[str, Words]]:
    if "domain" in machine:
        yield "domain", machine["domain"]
    runs = Styled(f"process {machine['pid']}", GOOD) if machine["running"] else "none"
    yield "QEMU", runs
    if plan is None:
        return
    quota = plan["cpu_quota_millis"]
    most = f", {quota / 1000:g} CPUs at most" if quota else ""
    yield "vCPUs", f"{plan['vcpus']} ({plan['accelerator']}){most}"
    yield "memory", size(plan["memory_mib"] * 2**20)
    root = [disk for disk in plan["disks"] if disk["role"] == "root"]
    if root and root[0]["size_mib"]:
        yield "disk", size(root[0]["size_mib"] * 2**20)
    limits = (("disk_iops", "operations"), ("disk_mib_s", "MiB"))
    said = [f"{plan[key]} {unit} a second" for key, unit in limits if plan[key]]
    if said:
        yield "disk limits", ", ".join(said)
    if plan["user"]:
        yield "host user", f"{plan['user']['uid']}:{plan['user']['gid']}"
    yield "wall", ", ".join(plan["wall"]) or Styled("no part of it", WARN)
    if plan["operator_exec"]:
        yield "commands", "of operators are run in it (operator_exec)"
    yield from _given(plan)


def _given(plan: Document) -> Iterator[tuple[str, Words]]:
    """What of the host's and of its workspace's the machine has beside its own disk."""
    disks = {disk["role"]: disk for disk in plan["disks"]}
    for volume in plan["volumes"]:
        disk = disks[volume["role"]]
        how = "read only" if disk["read_only"] else "written to"
        large = f"{size(disk['size_mib'] * 2**20)}, " if disk["size_mib"] else ""
        yield "volume", f"{volume['name']} at {volume['mount']}, {large}{how}"
    for folder in plan["host_mounts"]:
        user = "its own user" if folder["uid"] is None else f"uid {folder['uid']}"
        how = "read only" if folder["read_only"] else f"written to as {user}"
        yield "host folder", f"{folder['path']} at {folder['mount']}, {how}"
    if plan["devices"]:
        yield "devices", ", ".join(plan["devices"])
    along = [f["address"] for f in plan["passed"] if not f["given"]]
    if along:
        yield "", f"with the rest of their groups, which nobody has: {', '.join(along)}"


def _network(
    sandbox_id: str, lease: Document | None, plan: Document | None
) -> Iterator[tuple[str, Words]]:
    if lease:
        prefix = lease["prefix_length"]
        yield "guest", f"{lease['guest_ip']}/{prefix}, {lease['mac']}"
        yield "host", f"{lease['host_ip']}, {lease['tap']}"
    if plan is None:
        return
    network = plan["network"]
    if network["ipv6"]:
        yield "guest, IPv6", network["ipv6"]["guest_ip"]
    if network["no_ipv6"]:
        yield "no IPv6", Styled(network["no_ipv6"], WARN)
    yield "egress", network["egress"]
    ports = network["host_access"]
    if not isinstance(ports, str):
        ports = "ports " + ", ".join(map(str, ports))
    yield "host access", ports
    if network["namespace"]:
        yield "namespace", network["namespace"]
    limits = (("max_connections", "connections"), ("mbit_s", "Mbit a second"))
    said = [f"{network[key]} {unit}" for key, unit in limits if network[key]]
    if said:
        yield "limits", ", ".join(said)
    yield "", f"rule by rule: vmdriver net {sandbox_id}"


def _guest(report: Document) -> Iterator[tuple[str, Words]]:
    yield "says", report["phase"] or "nothing yet"
    if report["exit_code"] is not None:
        yield "exit code", str(report["exit_code"])
    if report["reason"]:
        yield "reason", report["reason"]
    stamps = sorted(report["stamps"].items(), key=lambda item: item[1])
    if stamps:
        said = (f"{name} after {span(seconds)}" for name, seconds in stamps)
        yield "its kernel", ", ".join(said)


def _last_start(
    sandbox_id: str, record: Document, now: datetime
) -> Iterator[tuple[str, Words]]:
    if record["last_start"]:
        timing = StartTiming.model_validate(record["last_start"])
        whole_ms = max((step.ended_ms for step in timing.steps), default=0.0)
        yield "how", f"{way(timing)} in {took(whole_ms)}"
        yield "when", moment(timing.at, now)
        if timing.kind in _FROM_MEMORY and record["last_restore"]:
            steps = record["last_restore"].items()
            said = (f"{name} {took(seconds * 1e3)}" for name, seconds in steps)
            yield "steps", ", ".join(said)
        yield "", f"step by step: vmdriver inspect {sandbox_id} --timing"
    if record["extensions"]["returned"] == RestoreKind.ADOPTED:
        yield "since then", "adopted: it ran on while no driver did"


def _memory(record: Document) -> Iterator[tuple[str, Words]]:
    if record["memory"]:
        stored = size(record["memory"]["stored_bytes"])
        yield record["memory"]["kind"], f"{stored} on disk"


def _snapshots(record: Document, now: datetime) -> Iterator[tuple[str, Words]]:
    for found in record["snapshots"]:
        entry = SnapshotEntry.model_validate(found)
        what = ["memory and disk" if entry.memory else "disk only"]
        if entry.volumes:
            what = ["disk and " + ", ".join(volume.name for volume in entry.volumes)]
        what.append(size(entry.stored_bytes))
        if entry.steps:
            what.append(f"the workload stood still for {took(stood_still_ms(entry))}")
        yield entry.name, f"{moment(entry.created_at, now)}, {', '.join(what)}"


def _held(ledger: Sequence[Document]) -> Iterator[tuple[str, Words]]:
    for entry in ledger:
        text = _HELD[entry["scope"]]
        yield entry["key"], text if entry["done"] else Styled(f"begun; {text}", WARN)
