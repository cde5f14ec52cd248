"""A report for whoever is to find a fault: all of it or nothing, and never a secret."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest

from tests.contract.secretive import (
    AT,
    MARK,
    ROOT,
    WITHOUT_LIBVIRT,
    canary,
    domain,
    made_host,
    packed,
)
from vmdriver.cli.bundle.archive import LIST
from vmdriver.cli.bundle.contents import MOST_OF_LOG
from vmdriver.cli.bundle.logs import driver_log, of_one
from vmdriver.cli.bundle.secrets import Secrets
from vmdriver.cli.doctor import examination
from vmdriver.cli.main import main
from vmdriver.config import SETTINGS, load
from vmdriver.host import process
from vmdriver.host.visible import visible
from vmdriver.model.record import CONSOLE_FOLLOWS, REFUSED_TO
from vmdriver.storage.layout import Layout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's files are packed")


@pytest.fixture
def host(tmp_path: Path) -> tuple[Layout, list[str]]:
    return made_host(tmp_path)


@pytest.fixture(autouse=True)
def _no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What doctor finds is its own tests' matter."""

    async def examine(_loaded: object) -> list[Any]:
        return []

    monkeypatch.setattr(examination, "examine", examine)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "driver.log"
    message = f"s1: MachineCrashed: died{CONSOLE_FOLLOWS}\\n{canary('logged-console')}"
    lines = (
        f"{AT} INFO vmdriver: ready: 2 sandboxes known",
        f"{AT} WARNING vmdriver: {message}",
        # As host/log.py writes them: by their beginning they are told from a guest's JSON.
        json.dumps(
            {"time": AT, "level": "warning", "message": message, "sandbox": "s1"}
        ),
        f"{AT} WARNING vmdriver: s2: NoSnapshot: {REFUSED_TO} freeze: {canary('refusal')}",
        f"{AT} ERROR vmdriver: s2: what it should not have said: {canary('s2.token')}",
        f"{AT} ERROR vmdriver: s2: nor this: {canary('s2.record.spec.environment')}",
        f"{AT} ERROR vmdriver: nor this: {canary('tls-key')} {canary('registry')}",
        f"{AT} ERROR vmdriver: nor this: {canary('extension-table-deep')}",
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_no_secret_of_any_place_is_packed(
    host: tuple[Layout, list[str]],
    log: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, flags = host
    out = tmp_path / "report.tar.gz"
    words = ["doctor", "--bundle", str(out), "--log", str(log), *flags]
    assert main(words) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    found = packed(out)
    printed = capsys.readouterr().out
    assert printed.startswith(found[LIST].rstrip("\n"))
    leaked = {name: text for name, text in found.items() if MARK in text}
    assert leaked == {}
    assert MARK not in printed
    record = json.loads(found["sandboxes/s1/record.json"])
    assert record["spec"]["environment"] == dict.fromkeys(
        ("NAME", "nested"), "[withheld]"
    )
    assert record["failure"]["message"] == f"died{CONSOLE_FOLLOWS} [withheld]"
    assert set(json.loads(found["configuration.json"])) == set(SETTINGS)
    assert "2 sandboxes known" in found["driver.log"]
    assert json.loads(found["driver.log"].splitlines()[2])["sandbox"] == "s1"
    assert "qemu: fatal" in found[f"machines/{domain(host[0], 's1')}.log"]
    assert {name for name in found if name.endswith("manifest.json")} == {
        "state/manifest.json",
        "templates/k/manifest.json",
        *(
            f"sandboxes/{name}/{place}/manifest.json"
            for name in ("s1", "s2")
            for place in ("suspended", "mapped", "not-restored", "snapshots/one")
        ),
    }
    for name in found.keys() - {LIST}:
        size = len(found[name].encode())
        assert re.search(rf"^  {re.escape(name)} +{size}  ", found[LIST], re.MULTILINE)


def test_stored_secrets_are_withheld_by_field_also_where_nobody_knows_them(
    host: tuple[Layout, list[str]], log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Without the second look: only what programs of others wrote freely is found then."""
    monkeypatch.setattr(Secrets, "scrubbed", lambda _self, text: text)
    out = tmp_path / "report.tar.gz"
    words = ["doctor", "--bundle", str(out), "--log", str(log), *host[1]]
    assert main(words) == 0
    leaked = {name for name, text in packed(out).items() if MARK in text}
    assert leaked == {
        "driver.log",
        f"machines/{domain(host[0], 's1')}.log",
        f"machines/{domain(host[0], 's2')}.log",
    }


def test_what_guests_printed_is_packed_only_when_asked_for(
    host: tuple[Layout, list[str]], log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.tar.gz"
    words = ["--console", "--sandbox", "s1", "--log", str(log), *host[1]]
    assert main(["doctor", "--bundle", str(out), *words]) == 0
    found = packed(out)
    assert canary("console") in found["sandboxes/s1/console.txt"]
    assert canary("guests-words") in found["sandboxes/s1/guest.json"]
    others = {
        n: t
        for n, t in found.items()
        if "console.txt" not in n and "guest.json" not in n
    }
    assert [name for name, text in others.items() if MARK in text] == []


def test_of_one_sandbox_nothing_of_the_others_is_packed(
    host: tuple[Layout, list[str]], log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.tar.gz"
    words = ["--sandbox", "s2", "--log", str(log), *host[1]]
    assert main(["doctor", "--bundle", str(out), *words]) == 0
    found = packed(out)
    assert not [name for name in found if "s1" in name]
    logs = [name for name in found if name.startswith("machines/")]
    assert logs == [f"machines/{domain(host[0], 's2')}.log"]
    assert "sandboxes/s2/record.json" in found
    assert "MachineCrashed" not in found["driver.log"]
    assert "s2: what it should not have said" in found["driver.log"]
    assert "sandboxes/s1" not in found["state.txt"]
    assert main(["doctor", "--bundle", str(tmp_path / "no"), "--sandbox", "s3", *host[1]]) == 2  # fmt: skip


DAMAGE = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "deep": lambda path: path.write_bytes(b"[" * 200_000),
    "missing": lambda path: path.unlink(),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/shadow")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a list": lambda path: path.write_text(json.dumps([canary("list")])),
    "of a newer release": lambda path: path.write_text(
        json.dumps(json.loads(path.read_text()) | {"schema_minor": 99, "novelty": canary("new")})
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_read_keeps_nothing_out_and_lets_nothing_out(
    damage: str, host: tuple[Layout, list[str]], log: Path, tmp_path: Path
) -> None:
    layout, flags = host
    files = layout.sandbox("s1")
    for path in (files.record, files.suspended / "manifest.json"):
        DAMAGE[damage](path)
    if damage != "of a newer release":
        DAMAGE[damage](files.ledger)
        DAMAGE[damage](files.status)
    out = tmp_path / "report.tar.gz"
    log.write_text("nothing\n")
    assert main(["doctor", "--bundle", str(out), "--log", str(log), *flags]) == 0
    found = packed(out)
    assert [name for name, text in found.items() if MARK in text] == []
    assert "root:" not in found["sandboxes/s1/record.json"]
    assert "sandboxes/s2/record.json" in found


def test_a_report_never_takes_the_place_of_a_file(
    host: tuple[Layout, list[str]], log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    out = tmp_path / "there"
    out.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (out, tmp_path / "link"):
        words = ["doctor", "--bundle", str(path), "--log", str(log), *host[1]]
        assert main(words) == 2
        said = capsys.readouterr()
        assert "is there already" in said.err
        assert said.out == "", "nothing was collected"
    assert out.read_text() == "mine"
    assert not (tmp_path / "target").exists()


FULL = """
set -e
mount -t tmpfs -o size=16k tmpfs "$0"
status=0
"$@" || status=$?
ls -A "$0"
exit $status
"""


def test_on_a_full_disk_there_is_an_error_and_nothing_is_left(
    host: tuple[Layout, list[str]], log: Path, tmp_path: Path
) -> None:
    place = tmp_path / "full"
    place.mkdir()
    log.write_text("".join(f"{os.urandom(32).hex()}\n" for _ in range(10_000)))
    words = ["doctor", "--bundle", str(place / "r.tar.gz"), "--log", str(log)]
    begun = [sys.executable, "-c", WITHOUT_LIBVIRT, *words, *host[1]]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL, str(place), *begun],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 2, done.stderr
    assert "r.tar.gz cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.rstrip().endswith("unless --console"), "nothing is left there"


def test_the_log_of_a_running_driver_is_found_by_the_socket_that_it_listens_on(
    host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    from vmdriver.cli.bundle.logs import driver_log, running_driver

    path, log = tmp_path / "a.sock", tmp_path / "err"
    assert running_driver(path) is None
    serving = f"import socket,sys\ns=socket.socket(1)\ns.bind('{path}')\ns.listen()\nprint('it listens',file=sys.stderr,flush=True)\nprint(1,flush=True)\nsys.stdin.read()"
    with log.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", serving],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
        )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        found = running_driver(path)
        assert found == process.pid
        text, where = driver_log(None, found)
        assert text == "it listens\n"
        assert str(process.pid) in where
        assert process.stdin is not None
        process.stdin.close()
    assert running_driver(path) is None, "what is left of it answers nobody"


def test_its_options_go_with_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--sandbox", "s1"]) == 2
    assert "--sandbox goes with --bundle" in capsys.readouterr().err


# --- what others wrote, where secrets are in other clothes


WINDOWS = canary("of-windows")
ESCAPED = f"esc\x1b\u202e&<'\"\\ {canary('escaped')}"


def secrets_of(layout: Layout, environment: dict[str, str]) -> Secrets:
    """With a sandbox that has that environment."""
    files = layout.sandbox("s9")
    files.root.mkdir(mode=0o700)
    files.record.write_text(json.dumps({"spec": {"environment": environment}}))
    flags = {"state_dir": str(layout.root)}
    return Secrets(load(flags=flags, environment={}).config, layout)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (f"{WINDOWS}-1\r\n{WINDOWS}-2\r\n", f"{WINDOWS}-2"),
        (ESCAPED, visible(ESCAPED)),
        (ESCAPED, repr(ESCAPED)),
        (ESCAPED, json.dumps({"within": json.dumps(ESCAPED)})),
        (ESCAPED, json.dumps(visible(ESCAPED))),
        (ESCAPED, escape(ESCAPED)),
        (ESCAPED, f"https://example.org/?key={quote(ESCAPED, safe='')}"),
    ],
)
def test_a_secret_is_found_however_it_was_written(
    value: str, written: str, host: tuple[Layout, list[str]]
) -> None:
    assert MARK in written
    shown = secrets_of(host[0], {"A": value}).scrubbed(f"before {written} behind")
    assert MARK not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" behind")


def test_secrets_that_overlap_are_gone_to_the_end_of_the_last(
    host: tuple[Layout, list[str]],
) -> None:
    secrets = secrets_of(
        host[0], {"A": "abcdefghij", "B": "fghijklmnopq", "C": "ghijklmn"}
    )
    assert secrets.scrubbed("-abcdefghijklmnopq-ghijklmn-") == "-[withheld]-[withheld]-"


def test_secrets_that_only_kept_memory_knows_are_found_too(
    host: tuple[Layout, list[str]],
) -> None:
    layout, _ = host
    secrets = secrets_of(layout, {})
    for place in ("s1.suspended", "s2.snapshots.one"):
        secret = canary(f"{place}.spec.environment")
        assert secrets.scrubbed(f"x {secret} y") == "x [withheld] y"
    secret = canary("template.spec.environment")
    assert secrets.scrubbed(f"x {secret} y") == "x [withheld] y"


def test_logins_are_also_found_where_programs_keep_them(
    host: tuple[Layout, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = base64.b64encode(f"robot:{canary('login')}".encode()).decode()
    path = tmp_path / "logins.json"
    path.write_text(json.dumps({"auths": {"example.org": {"auth": login}}}))
    monkeypatch.setattr("vmdriver.cli.bundle.secrets.LOGINS", (str(path),))
    shown = secrets_of(host[0], {}).scrubbed(f"{canary('login')} {login}")
    assert shown == "[withheld] [withheld]"


def test_an_environment_of_very_many_lines_keeps_no_report_waiting(
    host: tuple[Layout, list[str]],
) -> None:
    many = "\n".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(50_000))
    secrets = secrets_of(host[0], {"A": many})
    text = "2026 INFO vmdriver: two sandboxes are known\n" * 30_000
    begun = time.process_time()
    assert secrets.scrubbed(text) == text
    assert time.process_time() - begun < 10, "it took a minute and more"


def test_lines_of_a_sandbox_whose_name_begins_so_are_another_s() -> None:
    text = "s1: its\ns10: not\ns1-b: not\nunit-s10 is not\nunit-s1 is its\nno one's\n"
    found = of_one(text, ("s1", "unit-s1"), ["s10", "s1-b"])
    assert found == "s1: its\nunit-s1 is its\nno one's\n"


async def test_no_half_of_a_secret_is_left_where_the_journal_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = f"nor this: {canary('journal')}\n".encode()
    whole = line * (MOST_OF_LOG // len(line) + 2)

    async def journal(*_words: Any, **_named: Any) -> process.Completed:
        return process.Completed(whole, b"")

    monkeypatch.setattr(process, "run", journal)
    text, _ = await asyncio.to_thread(driver_log, None, None)
    assert set(text.splitlines()) == {line.decode().rstrip()}
