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
import tarfile
import time
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from pydantic import BaseModel

from tests.fakes.driver import spec
from vmdriver.cli.bundle import command
from vmdriver.cli.bundle.archive import LIST, TOP
from vmdriver.cli.bundle.contents import MOST_OF_LOG
from vmdriver.cli.bundle.disclosure import (
    FIELDS,
)
from vmdriver.cli.bundle.logs import driver_log, of_one
from vmdriver.cli.bundle.secrets import Secrets
from vmdriver.cli.main import main
from vmdriver.config import SETTINGS, load
from vmdriver.host import process
from vmdriver.host.visible import visible
from vmdriver.model.checkpoint import MemoryManifest
from vmdriver.model.ids import domain_name
from vmdriver.model.record import (
    CONSOLE_FOLLOWS,
    NOT_SET_UP,
    REFUSED_TO,
    SandboxRecord,
    utc_now,
)
from vmdriver.oci.cache import Entry
from vmdriver.storage.layout import Layout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's files are packed")
ROOT = Path(__file__).parents[2]
_MARK = "canary"


def canary(place: str) -> str:
    """A secret that is found wherever it went; long enough to be one."""
    return f"{_MARK}-{place}-5f0e93f1c0ffee"


# --- a host with a secret in every place that can hold one


def filled(kind: type[BaseModel], place: str) -> dict[str, Any]:
    """Every field of that model that is withheld, with a canary in it, and in all that it holds."""
    found: dict[str, Any] = {}
    for name in FIELDS[kind][1].split():
        found[name] = _secret_of(kind.model_fields[name].annotation, f"{place}.{name}")
    for name in FIELDS[kind][0].split():
        for inner in get_args(kind.model_fields[name].annotation) or (
            kind.model_fields[name].annotation,
        ):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                many = get_origin(kind.model_fields[name].annotation) is tuple
                value = filled(inner, f"{place}.{name}")
                found[name] = [value] if many else value
    return found


def _secret_of(annotation: Any, place: str) -> Any:
    text = canary(place)
    if annotation is str or annotation is Any:
        return text
    if get_origin(annotation) is tuple:
        return [text]
    return {"NAME": text, "nested": {"deeper": [text]}}


@pytest.fixture
def host(tmp_path: Path) -> tuple[Layout, list[str]]:
    """A state directory, and the flags that name it."""
    layout = Layout(tmp_path / "state")
    layout.make()
    now = utc_now()
    for name in ("s1", "s2"):
        record = SandboxRecord(spec=spec(name), created_at=now, changed_at=now)
        files = layout.sandbox(name)
        files.root.mkdir(mode=0o700)
        stored = record.model_dump(mode="json")
        merge(stored, filled(SandboxRecord, f"{name}.record"))
        tail = f"died{CONSOLE_FOLLOWS}\n{canary('console-in-message')}"
        if name == "s2":
            tail = f"{NOT_SET_UP} {canary('reason-in-message')}"
        stored["failure"] = {"reason": "MachineCrashed", "message": tail}
        files.record.write_text(json.dumps(stored))
        fill(files.root, name)
    elsewhere(layout)
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        state_dir = "{layout.root}"
        bind_socket = "{tmp_path}/run/d.sock"
        openshell_endpoint = "https://gateway.example.org:1"
        guest_tls_ca = "{tmp_path}/key"
        guest_tls_cert = "{tmp_path}/key"
        guest_tls_key = "{tmp_path}/key"
        image_auth_file = "{tmp_path}/auth.json"
        extensions = ["vault"]
        [extension.vault]
        address = "{canary("extension-table")}"
        [extension.vault.deep]
        list = ["{canary("extension-table-deep")}"]
        """
    )
    (tmp_path / "key").write_text(f"-----\n{canary('tls-key')}\n-----\n")
    auth = {"auths": {"registry": {"auth": "", "identitytoken": canary("registry")}}}
    (tmp_path / "auth.json").write_text(json.dumps(auth))
    return layout, ["--config", str(config)]


def merge(document: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict):
            merge(document[name], value)
        else:
            document[name] = value


def fill(folder: Path, name: str) -> None:
    """A sandbox's other files."""
    (folder / "token").write_text(canary(f"{name}.token"))
    (folder / "seed.img").write_text(canary("seed"))
    reason = canary("guests-words")
    (folder / "status.img").write_text(f"phase=failed\nreason={reason}\n")
    (folder / "console.log").write_text(f"login: {canary('console')}\n")
    (folder / "ledger.jsonl").write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"op": "intent", "key": "tap", "scope": "runtime", "data": {"tap": "t", "new": canary("ledger")}},
                {"op": "intent", "key": "hold:vault:lease:x", "scope": "persistent",
                 "data": {"extension": "vault", "kind": "lease", "name": "x", "undo": {"id": canary("undo")}}},
                {"op": "intent", "key": "stay-phases:vault", "scope": "persistent",
                 "data": {"extension": "vault", "saved": {"s": canary("saved")}}},
            )
        )
        + canary("torn-line")
    )  # fmt: skip
    own = folder / "extensions" / "vault"
    own.mkdir(parents=True)
    (own / canary("file-name")).write_text(canary("extensions-file"))
    for place in ("suspended", "mapped", "not-restored", "snapshots/one"):
        made = folder / place
        made.mkdir(parents=True)
        (made / "memory").write_text(canary("memory"))
        (made / "state").write_text(canary("state"))
        manifest = filled(MemoryManifest, f"{name}.{place.replace('/', '.')}")
        (made / "manifest.json").write_text(json.dumps(manifest))


def elsewhere(layout: Layout) -> None:
    """Everything of the state directory that is no sandbox's."""
    (layout.layers / "l.qcow2").write_text(canary("layer"))
    template = layout.templates / "k"
    template.mkdir()
    manifest = filled(MemoryManifest, "template")
    (template / "manifest.json").write_text(json.dumps(manifest))
    (template / "memory").write_text(canary("template-memory"))
    disks, tree = layout.images / "disks", layout.images / "trees" / "t"
    disks.mkdir()
    (tree / "root").mkdir(parents=True)
    (tree / "root" / canary("image-file-name")).write_text(canary("image-file"))
    (disks / "d.json").write_text(json.dumps(filled(Entry, "image")))
    (disks / "d.ext4").write_text(canary("base"))
    (tree / "source.json").write_text(json.dumps({"digest": "sha256:x"}))
    logs = layout.libvirt / "log" / "qemu"
    logs.mkdir(parents=True)
    said = f"qemu: fatal: {canary('s1.token')}\n"
    for name in ("s1", "s2"):
        (logs / f"{domain(layout, name)}.log").write_text(said)
    for place in (layout.probe, layout.warm, layout.supervisors, layout.boot):
        (place / "anything").write_text(canary(place.name))
    aside = layout.root / "set-aside"
    aside.mkdir()
    (aside / "token.0").write_text(canary("set-aside"))


def instance(layout: Layout) -> str:
    from vmdriver.config import load

    return load(
        flags={"state_dir": str(layout.root)}, environment={}
    ).config.driver.instance


def domain(layout: Layout, name: str) -> str:
    return domain_name(instance(layout), name)


def packed(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            assert entry.isreg()
            assert entry.mode == 0o600
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix(f"{TOP}/")] = file.read().decode()
        return found


@pytest.fixture(autouse=True)
def _no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What doctor finds is its own tests' matter."""

    async def examine(_loaded: object) -> list[Any]:
        return []

    monkeypatch.setattr(command, "examine", examine)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "driver.log"
    message = f"s1: MachineCrashed: died{CONSOLE_FOLLOWS}\\n{canary('logged-console')}"
    lines = (
        "2026 INFO vmdriver: ready: 2 sandboxes known",
        f"2026 WARNING vmdriver: {message}",
        json.dumps({"level": "warning", "message": message, "sandbox": "s1"}),
        f"2026 WARNING vmdriver: s2: NoSnapshot: {REFUSED_TO} freeze: {canary('refusal')}",
        f"2026 ERROR vmdriver: s2: what it should not have said: {canary('s2.token')}",
        f"2026 ERROR vmdriver: s2: nor this: {canary('s2.record.spec.environment')}",
        f"2026 ERROR vmdriver: nor this: {canary('tls-key')} {canary('registry')}",
        f"2026 ERROR vmdriver: nor this: {canary('extension-table-deep')}",
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
    leaked = {name: text for name, text in found.items() if _MARK in text}
    assert leaked == {}
    assert _MARK not in printed
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
    leaked = {name for name, text in packed(out).items() if _MARK in text}
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
    assert [name for name, text in others.items() if _MARK in text] == []


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
    assert [name for name, text in found.items() if _MARK in text] == []
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


WITHOUT_LIBVIRT = """
import sys
from vmdriver.cli.bundle import command
from vmdriver.cli.bundle.secrets import Secrets
from vmdriver.cli.main import main
async def examine(loaded):
    return []
command.examine = examine
sys.exit(main(sys.argv[1:]))
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
    assert _MARK in written
    shown = secrets_of(host[0], {"A": value}).scrubbed(f"before {written} behind")
    assert _MARK not in shown
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
