#!/usr/bin/python3
"""The package's life on a bare Debian: installed, tried, upgraded over a running sandbox, removed, purged.

usage: life.py PACKAGE.deb NEXT.deb [until-shutdown | after-boot | after-suspended]

Inside a root of its own, as root; see tests/package/in-chroot. With systemd (tests/package/services.py) it is in three parts,
with a shutdown of the host between them; with its stand-in it is one. Nothing but Debian's Python is needed; it says what it
does, and ends with 1 at the first thing that is not as promised.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import endings
from services import Systemd, becomes, must, run, say, service

HERE = Path(__file__).resolve().parent
CONFIG = Path("/etc/vmdriver/config.toml")
PORT = 17670


def machines() -> list[int]:
    """Of sandboxes: not what a driver boots to try KVM."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in words[0] and any(
            re.match(rb"guest=vmdriver-(demo-)?[0-9a-f]{16},", word) for word in words
        ):
            found.append(int(process.name))
    return found


def on_the_host() -> list[str]:
    """What a driver makes beside its files."""
    links = [line for line in run("ip", "-o", "link").splitlines() if "vmd" in line]
    tables = [
        line for line in run("nft", "list", "tables").splitlines() if "vmdriver" in line
    ]
    return [*links, *run("ip", "netns", "list").splitlines(), *tables]


def install(package: str) -> None:
    # Everything that it depends on is there: no network.
    run("dpkg", "--force-confold", "-i", package)


def looked_at() -> None:
    said = run("systemd-analyze", "verify", "--man=no", "vmdriver.service", check=False)
    wrong = [line for line in said.splitlines() if "vmdriver" in line]
    must(not wrong, f"systemd-analyze verify has nothing to say: {wrong}")
    said = run(
        "systemd-analyze", "security", "--offline=true", "vmdriver.service", check=False
    )
    must("Overall exposure level" in said, said.strip().splitlines()[-1])
    must(run("dpkg", "--verify", "vmdriver") == "", "every file is as it was packed")
    for page in ("man1/vmdriver.1.gz", "man5/vmdriver.toml.5.gz"):
        must(Path("/usr/share/man", page).exists(), f"{page} is there")


class Sandbox:
    """The client, which outlives the package. `image`: see tests/package/sandbox.py."""

    def __init__(self, image: str) -> None:
        self._process = subprocess.Popen(
            [
                "/usr/lib/vmdriver/bin/python3",
                str(HERE / "sandbox.py"),
                str(PORT),
                image,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while (line := self._line()) != "runs":
            if not line:
                raise SystemExit("the sandbox did not come up")
            print("   ", line)

    def _line(self) -> str:
        return self._process.stdout.readline().strip()

    def asks(self, word: str) -> str:
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        while (line := self._line()).startswith("["):
            continue
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def configured() -> str:
    """With the stand-in for the supervisor, and the demo's image."""
    stand_in = next(
        Path("/usr/lib/vmdriver/lib").glob(
            "python3.*/site-packages/vmdriver/demo/stand-in-supervisor"
        )
    )
    folder = Path("/var/lib/vmdriver-demo/image")
    code = "import sys; from pathlib import Path; from vmdriver.demo import image; image.build(Path(sys.argv[1]))"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        run("/usr/lib/vmdriver/bin/python3", "-c", code, str(folder))
    text = CONFIG.read_text()
    CONFIG.write_text(
        f'{text}\nsupervisor_path = "{stand_in}"\nallowed_image_dirs = ["{folder.parent}"]\n'
        "vcpus = 1\nmem_mib = 512\n[templates]\nenabled = false\n"
    )
    return f"oci:{folder}:demo"


def upgraded(sandbox: Sandbox, following: str) -> None:
    before, text = machines(), CONFIG.read_text()
    must(len(before) == 1, "one machine runs")
    say("upgrading over it")
    install(following)
    must(service().is_ready(), "the next driver has said that it is ready")
    must(machines() == before, "the machine goes on")
    must(sandbox.asks("check") == "here still", "and so does what runs in it")
    must(CONFIG.read_text() == text, "the settings are as the operator wrote them")
    version = run("dpkg-query", "-W", "-f", "${Version}", "vmdriver")
    must(version.endswith("+next"), f"it is {version} now")
    run("systemctl", "reload", "vmdriver.service")
    must(service().has_reloaded(), "a reload is told, and ends")
    sandbox.asks("suspend")
    must(machines() == [], "the next release puts its memory away")
    must(sandbox.asks("resume") == "here still", "and brings it back")


def removed(following: str) -> None:
    must(len(machines()) == 1, "one machine runs")
    say("removing")
    run("dpkg", "--remove", "vmdriver")
    must(machines() == [], "no machine is left")
    must(on_the_host() == [], f"nor a link, a namespace, a table: {on_the_host()}")
    must(service().has_ended_well(), "the driver has ended by itself")
    must(not Path("/usr/lib/vmdriver").exists(), "nor a file of the package")
    must(
        list(Path("/var/lib/vmdriver/sandboxes").iterdir()),
        "the sandbox's disk and record are",
    )
    say("installing it again")
    install(following)
    run("systemctl", "start", "vmdriver.service")
    rows = json.loads(run("vmdriver", "ls", "--json"))
    must(
        [row["reason"] for row in rows] == ["Stopped"],
        "the sandbox is known, and stopped",
    )


def removed_without_a_driver(sandbox: Sandbox, following: str) -> None:
    """The service is stopped, its machine goes on, or has ended by itself."""
    for what in ("goes on", "has ended"):
        must(sandbox.asks("start") == "here", "it is started, and its disk is there")
        say(f"removing while the service is stopped and the machine {what}")
        run("systemctl", "stop", "vmdriver.service")
        must(len(machines()) == 1, "one machine runs")
        if what == "has ended":
            os.kill(machines()[0], signal.SIGKILL)
        must(on_the_host(), "its network is there")
        run("dpkg", "--remove", "vmdriver")
        must(machines() == [], "no machine is left")
        must(on_the_host() == [], f"nor what it had: {on_the_host()}")
        install(following)


def unpacked_only(sandbox: Sandbox, following: str) -> None:
    """What dpkg does not ask prerm for: an installation that was cut off, and taken back."""
    must(sandbox.asks("start") == "here", "the sandbox is started")
    text = CONFIG.read_text()
    say("purging what was unpacked and not configured")
    run("dpkg", "--force-confold", "--unpack", following)
    said = run("dpkg", "--purge", "vmdriver", check=False)
    must("sandboxes still run" in said, "it is refused")
    must(len(machines()) == 1, "the machine goes on")
    must(list(Path("/var/lib/vmdriver/sandboxes").iterdir()), "with its disk")
    must(CONFIG.read_text() == text, "and the settings")
    install(following)
    must(sandbox.asks("check") == "here still", "installed again, it goes on still")
    must(len(json.loads(run("vmdriver", "ls", "--json"))) == 1, "and is the driver's")


def demo_told_to_end() -> None:
    say("a demo that is told to end")
    before = on_the_host()
    first = subprocess.Popen(["vmdriver", "demo"], stdout=subprocess.PIPE, text=True)
    while "has called back" not in (line := first.stdout.readline()):
        if not line:
            raise SystemExit("the demo has failed")
    first.send_signal(signal.SIGSTOP)  # else it stops its machine meanwhile
    own = min(machines())  # a template may be on its way beside it
    said = run("vmdriver", "demo", check=False)
    must("another demo runs" in said, "a second one beside it is refused")
    must(own in machines(), "the first one's machine goes on")
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    first.stdout.read()
    must(first.wait() == 130, "it ends")
    must(machines() == [], "its machine is gone")
    must(on_the_host() == before, f"as is all that it had: {on_the_host()}")
    must(not Path("/var/lib/vmdriver-demo").exists(), "and its folder")


def purged() -> None:
    say("purging")
    audit = Path("/var/log/vmdriver/extensions.jsonl")
    audit.parent.mkdir(exist_ok=True)
    audit.touch()
    run("dpkg", "--purge", "vmdriver")
    places = [Path(f"/{name}") for name in ("usr", "etc", "var/lib", "var/log", "run")]
    own = {str(HERE), "/var/lib/dpkg"}
    found = [
        path
        for place in places
        for path in place.rglob("*vmdriver*")
        if not any(str(path).startswith(one) for one in own)
    ]
    must(found == [], f"nothing bears its name any more: {found}")
    must(on_the_host() == [], f"nothing is on the host: {on_the_host()}")


def begun() -> Sandbox:
    looked_at()
    demo_told_to_end()
    image = configured()
    run("systemctl", "restart", "vmdriver.service")
    sandbox = Sandbox(image)
    must(sandbox.asks("check") == "here still", "a sandbox runs on the service")
    return sandbox


def to_the_end(sandbox: Sandbox, following: str) -> None:
    removed(following)
    removed_without_a_driver(sandbox, following)
    unpacked_only(sandbox, following)
    sandbox.close()
    purged()
    say("all as promised")


def with_the_stand_in(package: str, following: str) -> None:
    Path("/run/systemd/system").mkdir(parents=True, exist_ok=True)
    Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
    run("dpkg", "--purge", "vmdriver")  # apt has installed it while nothing ran here
    install(package)
    must(service().is_ready(), "its service was begun, and is ready")
    sandbox = begun()
    upgraded(sandbox, following)
    to_the_end(sandbox, following)


def until_shutdown(systemd: Systemd, following: str) -> None:
    """apt has installed it, and what it depends on, under systemd."""
    must(systemd.is_ready(), "its service was begun, and is ready")
    must(systemd.asked("UnitFileState") == "enabled", "and will be with each boot")
    sandbox = begun()

    def still() -> bool:
        return sandbox.asks("check") == "here still"

    endings.of_the_driver(systemd, machines, still)
    endings.in_the_journal(systemd)
    upgraded(sandbox, following)
    sandbox.asks("write")


def after_boot(systemd: Systemd) -> None:
    say("booted again")
    becomes(systemd.is_ready, "the driver is there without anybody's word")
    becomes(lambda: len(machines()) == 1, "and so is the machine")
    sandbox = Sandbox("known")
    must(sandbox.asks("check") == "here still", "booted from its disk, and it answers")
    must(sandbox.asks("written") == "late", "with what was written last, without sync")
    sandbox.asks("suspend")
    must(machines() == [], "its memory is put away")


def after_suspended(systemd: Systemd, following: str) -> None:
    say("booted again, with a suspended sandbox")
    becomes(systemd.is_ready, "the driver is there")
    rows = json.loads(run("vmdriver", "ls", "--json"))
    must([row["reason"] for row in rows] == ["Suspended"], "the sandbox is suspended")
    must(machines() == [], "no machine runs")
    sandbox = Sandbox("suspended")
    must(sandbox.asks("check") == "here still", "resumed, with its memory")
    to_the_end(sandbox, following)


def main(package: str, following: str, part: str = "") -> int:
    found = service()
    if not isinstance(found, Systemd):
        with_the_stand_in(package, following)
    elif part == "until-shutdown":
        until_shutdown(found, following)
    elif part == "after-boot":
        after_boot(found)
    else:
        after_suspended(found, following)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
