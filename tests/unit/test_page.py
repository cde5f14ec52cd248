"""What `vmdriver inspect` prints for people, of what it prints for machines."""

from __future__ import annotations

import contextlib
import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import spec
from vmdriver.cli.main import main
from vmdriver.cli.page import page, rendered
from vmdriver.cli.terminal import show
from vmdriver.model.checkpoint import MemoryRef, SnapshotEntry, VolumeCopy
from vmdriver.model.image import ImageConfig
from vmdriver.model.phase import Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import Failure, SandboxRecord, stored_form
from vmdriver.model.timing import StartTiming, TimedStep

GOLDEN = Path(__file__).parents[1] / "golden" / "plan.json"
NOW = datetime(2026, 11, 26, 20, 4, 17, tzinfo=UTC)
EVIL = "\x1b[2J\u202e[red]x[/red]\nid          forged"


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
    assert value(text, "booted") == (
        "in 1234 ms, 3 minutes ago (2026-11-26 20:01:17 UTC)"
    )
    assert value(text, "before").endswith("memory and disk, 1.5 GiB")
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
        {"last_restore": {EVIL: 0.1}, "network_broken": EVIL},
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
