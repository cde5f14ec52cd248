"""A report, where secrets are in places that came later, and the state directory is somebody else's playground."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from vmdriver.cli.bundle import command, contents
from vmdriver.cli.bundle.archive import LIST
from vmdriver.cli.bundle.logs import driver_log, environment_of
from vmdriver.cli.bundle.secrets import Secrets
from vmdriver.cli.doctor import examination
from vmdriver.cli.main import main
from vmdriver.cli.unread import known_sandboxes
from vmdriver.config import load
from vmdriver.model.record import CONSOLE_FOLLOWS
from vmdriver.model.volume import Volume, volume_id
from vmdriver.storage.layout import Layout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's files are packed")


@pytest.fixture
def host(tmp_path: Path) -> tuple[Layout, list[str]]:
    return made_host(tmp_path)


@pytest.fixture(autouse=True)
def _no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine(_loaded: object) -> list[Any]:
        return []

    monkeypatch.setattr(examination, "examine", examine)


def bundled(
    flags: list[str], tmp_path: Path, log: str = "", *more: str
) -> dict[str, str]:
    """What is inside a report about a driver that has logged that."""
    path, out = tmp_path / "a.log", tmp_path / "report.tar.gz"
    path.write_text(log)
    out.unlink(missing_ok=True)
    words = ["doctor", "--bundle", str(out), "--log", str(path), *flags]
    assert main([*words, *more]) == 0
    return packed(out)


ADDRESSES: Mapping[str, Callable[[str], str]] = {
    "connection": lambda login: f"qemu+ssh://{login}@host.example.org/system",
    "default_image": lambda login: f"{login}@registry.example.org/image:1",
    "supervisor_image": lambda login: f"https://{login}@registry.example.org/s:1",
    "bootstrap_image": lambda login: f"docker://{login}@registry.example.org/s:1",
    "insecure_registries": lambda login: f"http://{login}@registry.example.org",
    "allowed_images": lambda login: f"{login}@registry.example.org/agents",
}


@pytest.mark.parametrize("setting", ADDRESSES)
def test_a_login_in_an_address_leaves_the_host_neither_with_settings_nor_with_logs(
    setting: str, host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    login = f"robot:{canary(setting)}"
    flag = f"--{setting.replace('_', '-')}={ADDRESSES[setting](login)}"
    line = f"{AT} ERROR vmdriver: {canary(setting)} is not taken by {login}\n"
    found = bundled(host[1], tmp_path, line, flag)
    assert [name for name, text in found.items() if MARK in text] == []
    assert "is not taken by" in found["driver.log"]


def test_logins_of_proxies_and_tokens_of_a_drivers_own_environment_are_known(
    host: tuple[Layout, list[str]],
) -> None:
    config = load(flags={"state_dir": str(host[0].root)}, environment={}).config
    environment = {
        "https_proxy": f"http://me:{canary('proxy')}%2F@proxy.example.org:3128",
        "HTTP_PROXY": f"me:{canary('bare-proxy')}@proxy.example.org:3128",
        "VAULT_TOKEN": canary("vault"),
        "PATH": "/usr/sbin:/usr/bin",
    }
    secrets = Secrets(config, host[0], ({}, environment))
    text = f"{canary('proxy')}%2F {canary('proxy')}/ {canary('bare-proxy')} {canary('vault')}"
    assert MARK not in secrets.scrubbed(text)
    assert secrets.scrubbed("/usr/sbin:/usr/bin") == "/usr/sbin:/usr/bin"
    assert environment_of(os.getpid())["PATH"] == os.environ["PATH"]
    assert environment_of(None) == environment_of(2**22 + 1) == {}


def test_keys_of_gateways_on_other_hosts_and_logins_of_mirrors_are_known(
    host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "remote").write_text(
        f"-----BEGIN-----\n{canary('remote-key')}\n-----END-----\n"
    )
    mirror = f'[[registry]]\nlocation = "me:{canary("mirror")}@mirror.example.org"\n'
    (tmp_path / "mirrors").write_text(mirror)
    more = [
        "--bind-tls=127.0.0.1:7443",
        *(f"--tls-{name}={tmp_path}/remote" for name in ("ca", "certificate", "key")),
        "--tls-clients=gateway.example.org",
        f"--image-registries-conf={tmp_path}/mirrors",
    ]
    line = f"{AT} ERROR vmdriver: {canary('remote-key')} and {canary('mirror')}\n"
    found = bundled(host[1], tmp_path, line, *more)
    assert [name for name, text in found.items() if MARK in text] == []
    assert "[withheld] and [withheld]" in found["driver.log"]


@pytest.mark.parametrize("before", ["", "2026-11-27T07:00:00+0000 host vmdriver[7]: "])
def test_what_a_guest_said_in_a_traceback_is_withheld_to_its_end(
    before: str, tmp_path: Path
) -> None:
    lines = (
        f"{AT} ERROR vmdriver: incident 1",
        "Traceback (most recent call last):",
        f"vmdriver.errors.HostError: died{CONSOLE_FOLLOWS}",
        canary("printed"),
        f"  {canary('printed-too')}",
        f"""{{"level": "info", "said": "{canary("as-json")}"}}""",
        f"app: {{{canary('after-a-colon')}}}",
        f"systemd[1]: {canary('by-its-systemd')}",
        f"{AT} INFO vmdriver: it goes on",
    )
    path = tmp_path / "log"
    path.write_text("".join(f"{before}{line}\n" for line in lines))
    text, _ = driver_log(path, None)
    assert MARK not in text
    assert "Traceback" in text
    assert text.endswith(f"{before}{AT} INFO vmdriver: it goes on\n")


def test_volumes_are_told_and_of_one_sandbox_those_that_it_has(
    host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    layout, flags = host
    ids = {}
    for name, owner in (("data", "s1"), ("other", "s2")):
        volume = Volume(workspace="w", name=name, size_mib=64, created_at="2026-11-27T00:00:00Z", attached={owner: False})  # type: ignore[arg-type]  # fmt: skip
        ids[owner] = volume_id("w", name)
        place = layout.volume(ids[owner])
        place.root.mkdir()
        place.disk.write_text(canary("volume"))
        document = json.loads(volume.model_dump_json()) | {"novelty": canary("note")}
        place.note.write_text(json.dumps(document))
    found = bundled(flags, tmp_path)
    assert [name for name, text in found.items() if MARK in text] == []
    note = json.loads(found[f"volumes/{ids['s1']}/volume.json"])
    assert note["attached"] == {"s1": False}
    assert note["novelty"] == "[withheld]"
    found = bundled(flags, tmp_path, "", "--sandbox", "s2")
    notes = [name for name in found if name.startswith("volumes/")]
    assert notes == [f"volumes/{ids['s2']}/volume.json"]


PLAYED = {
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: os.mknod(path, 0o20666, os.makedev(1, 5)),
    "a link": lambda path: path.symlink_to("/etc/shadow"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("what", PLAYED)
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    what: str, host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    layout, flags = host
    files = layout.sandbox("s1")
    log = layout.libvirt / "log" / "qemu" / f"{domain(layout, 's1')}.log"
    folder = layout.volumes / "played"
    folder.mkdir()
    places = (log, files.console, files.status, files.token, folder / "volume.json")
    for path in (*places, layout.wall, layout.root / "foreign"):
        path.unlink(missing_ok=True)
        PLAYED[what](path)
    found = bundled(flags, tmp_path, "", "--console")
    assert not [name for name, text in found.items() if "root:" in text]
    assert "foreign" in found["state.txt"]
    assert "not read" in found[f"machines/{log.name}"]
    assert "sandboxes/s2/record.json" in found


def test_a_report_has_a_most_and_says_what_had_no_room(
    host: tuple[Layout, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, flags = host
    logs = layout.libvirt / "log" / "qemu"
    name = domain(layout, "s1").rpartition("-")[0]
    for number in range(40):
        path = logs / f"{name}-{number:016x}.log"
        path.write_text("a line of QEMU's\n" * 5_000)
        os.utime(path, (number, number))
    monkeypatch.setattr(command, "MOST", 2**19)
    tracemalloc.start()
    found = bundled(flags, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**24, "what has no room is not kept"
    text = found.pop(LIST)
    assert sum(len(inside.encode()) for inside in found.values()) <= 2**19
    inside, _, without = text.partition("not inside, since a report has")
    newest, oldest = (f"machines/{name}-{number:016x}.log" for number in (39, 0))
    assert newest in inside
    assert newest in found
    assert oldest in without
    assert oldest not in found


def test_a_daemons_logs_of_another_driver_are_not_ours_to_tell(
    host: tuple[Layout, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirtd has those of all in one folder, and the other one's secrets are not known here."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    monkeypatch.setattr(contents, "DAEMONS_LOGS", folder)
    own, other = "mine-0123456789abcdef.log", "mine-01234567-0123456789abcdef.log"
    for name in (own, other):
        (folder / name).write_text("qemu: fatal\n")
    more = ["--instance=mine", "--connection=qemu:///system"]
    found = bundled(host[1], tmp_path, "", *more)
    assert [name for name in found if name.startswith("machines/")] == [
        f"machines/{own}"
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--compose", "--bundle", "report"],
        ["--attack", "--bundle", "report"],
        ["--compose", "--attack"],
        ["--compose", "--sandbox", "s1"],
        ["--attack", "--console"],
    ],
)
def test_what_cannot_be_done_together_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Not done in part, as if the rest had not been asked for."""
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["doctor", *words])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    said = capsys.readouterr().err
    assert any(word in said for word in words)
    assert list(tmp_path.iterdir()) == []


READ_ONLY = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_looked_at(
    host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    for path in (place / "r", tmp_path / "no" / "such" / "r", tmp_path / "key" / "r"):
        words = ["doctor", "--bundle", str(path), *host[1]]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", READ_ONLY, str(place), sys.executable, "-m", "vmdriver", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert f"{path.parent} is no folder that can be written to" in done.stderr
        assert "looking" not in done.stderr
        assert done.stdout == ""
    assert not list(place.iterdir())


def test_two_reports_at_once_are_one_and_a_refusal(
    host: tuple[Layout, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "report.tar.gz"
    words = [sys.executable, "-c", WITHOUT_LIBVIRT, "doctor", "--bundle", str(out), "--log", str(tmp_path / "key"), *host[1]]  # fmt: skip
    begun = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, text=True)
        for _ in range(3)
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[0] for process in begun]
    assert sorted(process.returncode for process in begun) == [0, 2, 2], said
    assert LIST in packed(out)
    assert sum("is there already" in text for text in said) == 2
    assert [
        path for path in tmp_path.iterdir() if path.name.startswith(".report")
    ] == []


def test_a_sandbox_that_is_deleted_meanwhile_is_left_out_or_said_to_be_gone(
    host: tuple[Layout, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, flags = host
    before = known_sandboxes

    def known(asked: Layout) -> list[str]:
        found = before(asked)
        shutil.rmtree(layout.sandbox("s1").root, ignore_errors=True)
        return found

    monkeypatch.setattr("vmdriver.cli.bundle.contents.known_sandboxes", known)
    found = bundled(flags, tmp_path)
    assert "not read" in json.loads(found["sandboxes/s1/record.json"])
    assert "sandboxes/s2/record.json" in found
