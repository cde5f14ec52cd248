"""What `vmdriver inspect` prints for people, of what it prints for machines."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import spec
from vmdriver.cli.main import main
from vmdriver.cli.page import page, rendered
from vmdriver.cli.terminal import show
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.model.checkpoint import MemoryRef, SnapshotEntry, VolumeCopy
from vmdriver.model.devices import PassedFunction
from vmdriver.model.host_mount import HostMount
from vmdriver.model.image import ImageConfig
from vmdriver.model.ipv6 import block
from vmdriver.model.phase import Phase
from vmdriver.model.plan import Disk, LaunchPlan, MountedVolume
from vmdriver.model.record import ExtensionState, Failure, SandboxRecord, stored_form
from vmdriver.model.timing import StartTiming, TimedStep

GOLDEN = Path(__file__).parents[1] / "golden" / "plan.json"
NOW = datetime(2026, 11, 26, 20, 4, 17, tzinfo=UTC)
EVIL = "\x1b[2J\u202e[red]x[/red]\nid          forged"


RESUMED = StartTiming(kind="resumed", at=NOW, steps=())


def record(**changes: Any) -> SandboxRecord:
    plan = LaunchPlan.model_validate_json(GOLDEN.read_text())
    fields: dict[str, Any] = {
        "spec": spec("s1", workspace="w", labels={"team": "blue"}),
        "phase": Phase.RUNNING,
        "created_at": NOW - timedelta(days=2),
        "changed_at": NOW - timedelta(minutes=3, seconds=5),
        "plan": plan,
        "lease": plan.network.lease,
        "launches": 2,
        "image_digest": "sha256:abc",
        "image_config": ImageConfig(user="1000", command=("sh", "-c", "a b")),
        "last_start": StartTiming(
            kind="booted",
            at=NOW - timedelta(minutes=3),
            steps=(TimedStep(name="machine", begun_ms=0, ended_ms=1234.4),),
        ),
        "snapshots": (
            SnapshotEntry(
                name="before",
                created_at=NOW - timedelta(hours=1),
                layers=("a",),
                memory=MemoryRef(
                    directory="d", digest="x", kind="snapshot", stored_bytes=3 * 2**29
                ),
                steps=(
                    TimedStep(name="freeze", begun_ms=10, ended_ms=12),
                    TimedStep(name="write", begun_ms=12, ended_ms=900),
                    TimedStep(name="go on", begun_ms=38, ended_ms=41),
                ),
            ),
            SnapshotEntry(
                name="after",
                created_at=NOW - timedelta(hours=1),
                layers=("a", "b"),
                disk_bytes=2**29,
                volumes=(
                    VolumeCopy(name="d", size_mib=64, path="p", stored_bytes=2**29),
                ),
            ),
        ),
    }
    return SandboxRecord(**fields | changes)


def stored(state: Path, one: SandboxRecord, console: bytes = b"hello\n") -> None:
    folder = state / "sandboxes" / "s1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(stored_form(one))
    intent = {"op": "intent", "key": "machine", "scope": "runtime", "data": {}}
    (folder / "ledger.jsonl").write_text(json.dumps(intent) + "\n")
    (folder / "console.log").write_bytes(console)


def printed(state: Path) -> str:
    from vmdriver.cli.inspect import inspection
    from vmdriver.config import load

    loaded = load(flags={"state_dir": str(state)}, environment={})
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        show(rendered(page("s1", inspection(loaded, "s1"), NOW)))
    return output.getvalue()


def value(text: str, label: str) -> str:
    found = re.search(rf"^  {re.escape(label)} +(.*)$", text, re.MULTILINE)
    assert found, f"no {label!r} in\n{text}"
    return found[1]


def test_it_reads_like_a_page(tmp_path: Path) -> None:
    stored(tmp_path, record())
    text = printed(tmp_path)
    assert text.splitlines()[0] == "name-s1"
    assert value(text, "since") == "3 minutes ago (2026-11-26 20:01:12 UTC)"
    assert value(text, "created") == "2 days ago (2026-11-24 20:04:17 UTC)"
    assert value(text, "phase") == "running"
    assert value(text, "label") == "team = blue"
    assert value(text, "CMD") == "sh -c 'a b'"
    assert value(text, "how") == "booted in 1234 ms"
    assert value(text, "when") == "3 minutes ago (2026-11-26 20:01:17 UTC)"
    assert "step by step: vmdriver inspect s1 --timing" in text
    assert value(text, "before").endswith(
        "memory and disk, 1.5 GiB, the workload stood still for 31 ms"
    )
    assert value(text, "after").endswith("disk and d, 1.0 GiB")
    assert value(text, "machine") == "begun; while the machine runs"
    assert re.fullmatch(r"\d+ MiB|\d+\.\d GiB", value(text, "memory"))
    assert text.endswith("console (its end)\n  hello\n")
    assert "{" not in text, "no dictionaries"
    assert "None" not in text
    titles = [line for line in text.splitlines() if line[:1].strip()]
    assert titles == [
        *("name-s1", "image", "machine", "network", "guest", "last start"),
        *("snapshots", "held on this host", "console (its end)"),
    ]
    columns = {
        len(line) - len(line[2:].partition("  ")[2].lstrip())
        for line in text.splitlines()
        if re.match(r"  (id|phase|since|created|digest|egress|host) ", line)
    }
    assert len(columns) == 1, "values are below each other"


def test_what_failed_says_why_and_that_it_is_tried_again(tmp_path: Path) -> None:
    failure = Failure(reason="MachineCrashed", message="it ended", will_retry=True)
    stored(tmp_path, record(phase=Phase.FAILED, failure=failure, network_broken="x"))
    text = printed(tmp_path)
    assert value(text, "failure") == "MachineCrashed: it ended"
    assert "it is tried again" in text
    assert value(text, "network") == "broken: x"


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": spec("s1", name=EVIL)},
        {"spec": spec("s1", labels={EVIL: EVIL}, image=EVIL)},
        {"failure": Failure(reason="X", message=EVIL), "note": EVIL},
        {"image_config": ImageConfig(user=EVIL, entrypoint=(EVIL,))},
        {"last_restore": {EVIL: 0.1}, "last_start": RESUMED, "note": EVIL},
    ],
    ids=["name", "labels", "reasons", "image", "steps"],
)
def test_what_others_say_moves_nothing_and_is_not_taken_for_ours(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    stored(tmp_path, record(**changes), console=EVIL.encode() + b"\n")
    text = printed(tmp_path)
    assert text.replace("\n", "").isprintable()
    assert r"\x1b[2J\u202e[red]x[/red]" in text
    own = [line for line in text.splitlines() if re.match(r"  id  ", line)]
    # The console's lines are below its title, and the last of all.
    body, _, console = text.partition("console (its end)\n")
    assert len([line for line in own if line in body.splitlines()]) == 1
    assert "forged" in console


def test_a_sandbox_that_was_just_accepted_has_a_page(tmp_path: Path) -> None:
    bare = SandboxRecord(spec=spec("s1"), created_at=NOW, changed_at=NOW)
    stored(tmp_path, bare, console=b"")
    text = printed(tmp_path)
    assert value(text, "since") == "just now (2026-11-26 20:04:17 UTC)"
    assert value(text, "QEMU") == "none"
    assert value(text, "says") == "nothing yet"


def test_machines_get_the_document_as_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, record())
    assert main(["inspect", "s1", "--json", "--state-dir", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == [
        *("record", "unreadable", "ledger", "guest", "machine", "addresses"),
        *("console_tail", "directory"),
    ]
    assert document["record"]["spec"]["name"] == "name-s1"


def test_devices_of_the_host_that_the_machine_has_are_named(tmp_path: Path) -> None:
    plan = LaunchPlan.model_validate_json(GOLDEN.read_text())
    given = plan.model_copy(update={"devices": ("0000:3b:00.0", "0000:af:00.0")})
    stored(tmp_path, record(plan=given))
    assert value(printed(tmp_path), "devices") == "0000:3b:00.0, 0000:af:00.0"


def test_all_that_a_machine_was_given_is_named(tmp_path: Path) -> None:
    plan = LaunchPlan.model_validate_json(GOLDEN.read_text())
    disks = [
        Disk(role=role, path="p", format="raw", read_only=read_only, size_mib=4096)
        for role, read_only in (("volume0", False), ("volume1", True))
    ]
    network = plan.network.model_copy(
        update={"ipv6": block("fd00:1::/64", 2, ()), "no_ipv6": ""}
    )
    given = plan.model_copy(
        update={
            "disks": (*plan.disks, *disks),
            "volumes": (
                MountedVolume(role="volume0", workspace="w", name="data", mount="/d"),
                MountedVolume(role="volume1", workspace="w", name="ref", mount="/r"),
            ),
            "host_mounts": (
                folder("/srv/a", read_only=True),
                folder("/srv/b", read_only=False, uid=1000),
                folder("/srv/c", read_only=False),
            ),
            "devices": ("0000:3b:00.0",),
            "passed": (
                PassedFunction(address="0000:3b:00.0", group=1),
                PassedFunction(address="0000:3b:00.1", group=1, given=False),
            ),
            "network": network,
            "operator_exec": True,
        }
    )
    stored(tmp_path, record(plan=given))
    text = printed(tmp_path)
    for line in (
        "volume        data at /d, 4.0 GiB, written to",
        "volume        ref at /r, 4.0 GiB, read only",
        "host folder   /srv/a at /mnt, read only",
        "host folder   /srv/b at /mnt, written to as uid 1000",
        "host folder   /srv/c at /mnt, written to as its own user",
        "devices       0000:3b:00.0",
        "with the rest of their groups, which nobody has: 0000:3b:00.1",
        "guest, IPv6   fd00:1::a",
        "commands      of operators are run in it (operator_exec)",
        "rule by rule: vmdriver net s1",
    ):
        assert line in text


def test_each_thing_that_is_held_says_how_long(tmp_path: Path) -> None:
    stored(tmp_path, record())
    ledger = tmp_path / "sandboxes" / "s1" / "ledger.jsonl"
    with ledger.open("a") as file:
        for scope in Scope:
            for op in ("intent", "done"):
                entry = {"op": op, "key": f"a-{scope}", "scope": scope, "data": {}}
                file.write(json.dumps(entry) + "\n")
    text = printed(tmp_path)
    for scope in Scope:
        assert re.match("while|until", value(text, f"a-{scope}"))


def test_steps_of_a_return_are_those_of_the_last_start(tmp_path: Path) -> None:
    stored(tmp_path, record(last_restore={"load": 0.189}, last_start=RESUMED))
    assert value(printed(tmp_path), "steps") == "load 189 ms"
    shutil.rmtree(tmp_path / "sandboxes")
    stored(tmp_path, record(last_restore={"load": 0.189}))
    assert "load 189" not in printed(tmp_path), "it has booted since"


def folder(path: str, *, read_only: bool, uid: int | None = None) -> HostMount:
    return HostMount(
        tag="t", path=path, allowed="/srv", mount="/mnt", read_only=read_only, uid=uid,
        socket="s",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("relaunched", "booted again"),
        ("resumed", "resumed from its memory"),
        ("snapshot", "returned to a snapshot"),
        ("template", "taken from the warm pool"),
    ],
)
def test_how_it_came_up_and_that_it_was_adopted_is_said(
    kind: str, how: str, tmp_path: Path
) -> None:
    timing = StartTiming(
        kind=kind,
        at=NOW,
        steps=(TimedStep(name="machine", begun_ms=0, ended_ms=402.0),),
    )
    adopted = ExtensionState(active=("audit-log",), returned="adopted")
    stored(tmp_path, record(last_start=timing, extensions=adopted, reverting="one"))
    text = printed(tmp_path)
    assert value(text, "how") == f"{how} in 402 ms"
    assert value(text, "since then") == "adopted: it ran on while no driver did"
    assert value(text, "extensions") == "audit-log"
    assert value(text, "returns to") == "snapshot one"


@pytest.mark.parametrize("command", ["inspect", "console", "net"])
def test_a_sandbox_is_found_by_its_name_too_where_one_alone_has_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tried(word: str) -> tuple[int, str]:
        status = main([command, word, "--json", "--state-dir", str(tmp_path)])
        found = capsys.readouterr()
        return status, found.out if status == 0 else found.err

    stored(tmp_path, record())
    by_id = tried("s1")
    assert by_id[0] == 0
    assert tried("name-s1") == by_id
    status, text = tried("name")
    assert status == 2
    assert "sandbox name is not known" in text
    assert "vmdriver ls" in text
    shutil.copytree(tmp_path / "sandboxes" / "s1", tmp_path / "sandboxes" / "s2")
    (tmp_path / "sandboxes" / "s2" / "record.json").write_text("{")
    assert tried("name-s1") == by_id, "what cannot be read has no name"
    other = record(spec=spec("s2", name="name-s1"))
    (tmp_path / "sandboxes" / "s2" / "record.json").write_bytes(stored_form(other))
    status, text = tried("name-s1")
    assert status == 2
    assert "2 sandboxes are named 'name-s1': name one by its id: s1, s2" in text
    assert tried("s1") == by_id
    assert tried("../s1")[0] == 2
