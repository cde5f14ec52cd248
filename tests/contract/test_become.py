"""What a guest does between its barrier and its supervisor (images/guest/become.c), in namespaces of this host."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.guest_programs import compiled
from tests.fakes.waiting import until
from tests.unit.test_plan_rendering import plan
from vmdriver.model.ids import host_mac
from vmdriver.model.ipv6 import block
from vmdriver.model.plan import DropIn, LaunchPlan
from vmdriver.storage.sandboxes import seed
from vmdriver.storage.sandboxes.guest_report import read_report

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")
SUPERVISOR = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    char line[4096];
    FILE *out = fopen("/told", "w");
    for (int i = 0; i < argc; i++)
        fprintf(out, "word %s\n", argv[i]);
    for (char **at = environ; *at; at++)
        fprintf(out, "env %s\n", *at);
    gethostname(line, sizeof line);
    fprintf(out, "host %s\nsession %d\n", line, getsid(0) == getpid());
    FILE *routes = fopen("/route", "r"); /* of another process: the network is in no file of this root */
    fclose(out);
    return routes ? 8 : 7;
}
"""
OUTSIDE = """
set -e
mount -t tmpfs run /run
mount --bind "$1" "$1"
mkdir -p "$1/sysroot"
mkdir -p /sysroot 2>/dev/null || true
ip tuntap add eth0 mode tap
echo ready >"$2/ready"
if [ -n "$5" ]; then exec "$3" "$1" "$2/seed" "$2/status" "$4" barrier; fi
status=0
"$3" "$1" "$2/seed" "$2/status" "$4" || status=$?
ip -o addr show eth0 >"$2/network"
ip route >>"$2/network"
for look in "addr show eth0" route neigh; do ip -6 -o $look 2>/dev/null >>"$2/network6" || true; done
[ ! -e /run/failed ] || cat /run/failed >"$2/failed"
exit $status
"""


@dataclass
class Guest:
    """A root directory of an image, and the disks of its machine."""

    program: Path
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def told(self) -> str:
        found = self.root / "told"
        return found.read_text() if found.exists() else ""

    @property
    def failed(self) -> str:
        found = self.folder / "failed"
        return found.read_text() if found.exists() else ""

    def give(self, data: bytes) -> None:
        size = seed.disk_bytes(len(data))
        (self.folder / "seed").write_bytes(data.ljust(size, b"\0"))

    def begin(self, barrier: str = "") -> subprocess.Popen[bytes]:
        words = [str(self.root), str(self.folder), str(self.program), "init=1.00"]
        command = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork"]
        command += ["--kill-child", "sh", "-c", OUTSIDE, "sh", *words, barrier]
        log = (self.folder / "console").open("ab")
        with log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def run(self) -> int:
        return self.begin().wait(20)

    @property
    def network(self) -> str:
        return (self.folder / "network").read_text()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("become")
    compiled(folder / "become", "become.c", "seed.c", options=("-static",))
    command = ["gcc", "-static", "-x", "c", "-", "-o", folder / "supervisor"]
    subprocess.run(command, input=SUPERVISOR.encode(), check=True)
    return folder


@pytest.fixture
def guest(programs: Path, tmp_path: Path) -> Guest:
    made = Guest(programs / "become", tmp_path)
    there = made.root / "opt/openshell/bin"
    there.mkdir(parents=True)
    (made.root / "etc").mkdir()
    (there / "openshell-sandbox").write_bytes((programs / "supervisor").read_bytes())
    (there / "openshell-sandbox").chmod(0o755)
    (tmp_path / "status").write_bytes(bytes(65536))
    return made


SECRETS = seed.Secrets({"auth/sandbox.jwt": b"token\n", "tls/ca.crt": b"ca\n"})


def machine(**changes: object) -> LaunchPlan:
    return plan().model_copy(update={"drop_ins": (), **changes})


def seed_of(made: LaunchPlan) -> bytes:
    return seed.build(made, {"A": "x y", "B": "two\nlines"}, SECRETS)


def test_a_machine_becomes_what_its_seed_says(guest: Guest) -> None:
    made = machine()
    guest.give(seed_of(made))
    assert guest.run() == 7, (guest.folder / "console").read_text() + guest.failed
    assert guest.told.splitlines()[:3] == [
        "word /opt/openshell/bin/openshell-sandbox",
        *("word --workdir", "word /sandbox"),
    ]
    assert "env A=x y\nenv B=two\nlines\n" in guest.told
    assert f"host {made.hostname}\nsession 1\n" in guest.told
    etc, ours = guest.root / "etc", guest.root / "opt/openshell"
    assert (etc / "machine-id").read_text() == made.domain_uuid.replace("-", "") + "\n"
    assert (etc / "hostname").read_text() == made.hostname + "\n"
    assert (etc / "resolv.conf").read_text() == "nameserver 192.0.2.53\n"
    modes = {
        path: (ours / path).stat().st_mode & 0o7777
        for path in ("auth", "auth/sandbox.jwt", "tls/ca.crt", "init.d", "init.d.manifest")
    }  # fmt: skip
    assert modes == {
        "auth": 0o700,
        "auth/sandbox.jwt": 0o600,
        "tls/ca.crt": 0o644,
        "init.d": 0o755,
        "init.d.manifest": 0o644,
    }
    assert (etc / "machine-id").stat().st_mode & 0o7777 == 0o444
    address, route = guest.network.splitlines()[0], guest.network.splitlines()[-2:]
    assert f"inet {made.network.guest_interface} scope global eth0" in address
    assert any(
        line.startswith(f"default via {made.network.lease.host_ip} dev eth0")
        for line in route
    ), guest.network
    report = read_report(str(guest.folder / "status"))
    assert report.phase == "started"
    assert report.stamps["init"] == 1.0
    assert report.stamps["supervisor"] > 0


def test_a_machine_with_ipv6_has_what_it_is_given_and_has_nobody_to_ask(
    guest: Guest,
) -> None:
    own, plain = block("fd00:1::/64", 5, ()), machine().network
    guest.give(seed_of(machine(network=plain.model_copy(update={"ipv6": own}))))
    assert guest.run() == 7, (guest.folder / "console").read_text() + guest.failed
    shown = (guest.folder / "network6").read_text()
    assert f"inet6 {own.guest_ip}/128 scope global nodad" in shown
    assert re.search(rf"default via {own.host_ip} dev eth0 .*onlink", shown), shown
    mac = host_mac(plain.lease.mac)
    assert f"{own.host_ip} dev eth0 lladdr {mac} PERMANENT" in shown
    assert f"inet {plain.guest_interface}" in guest.network


@pytest.mark.parametrize(
    "changes",
    [
        {"guest_ip": "10.0.0.1"},
        {"guest_ip": "fd00::2/64"},
        {"guest_ip": "fd00::2" + "0" * 400},
        {"host_ip": "10.0.0.1"},
        {"host_ip": "fd00::1 02:00:00:00:00:0g"},
        {"host_ip": ""},
    ],
    ids=str,
)
def test_an_ipv6_address_that_is_none_ends_the_machine(
    guest: Guest, changes: dict[str, str]
) -> None:
    own = block("fd00:1::/64", 5, ()).model_copy(update=changes)
    network = machine().network.model_copy(update={"ipv6": own})
    guest.give(seed_of(machine(network=network)))
    assert guest.run() == 1
    assert guest.failed
    assert not guest.told


def test_a_fork_is_what_its_own_seed_says_and_nothing_of_its_template(
    guest: Guest,
) -> None:
    guest.give(seed.build_barrier(machine()))
    process = guest.begin("barrier")
    try:
        status = str(guest.folder / "status")
        until(lambda: read_report(status).phase == "waiting", lambda: guest.failed)
        assert read_report(status).stamps == {"init": 1.0}
        (waiting,) = Path(f"/proc/{process.pid}/task").glob("*/children")
        child = int(waiting.read_text())
        made = machine(hostname="fork")
        guest.give(seed_of(made))
        Path(f"/proc/{child}/root/run/barrier").write_text("go\n")
        assert process.wait(20) == 7, (guest.folder / "console").read_text()
    finally:
        process.kill()
    assert "host fork\n" in guest.told
    found = read_report(status)
    assert set(found.stamps) == {"adopted", "supervisor"}
    assert 0 <= found.stamps["supervisor"] - found.stamps["adopted"] < 5


def test_a_barrier_that_nobody_opens_in_earnest_ends_the_machine(guest: Guest) -> None:
    guest.give(seed.build_barrier(machine()))
    process = guest.begin("barrier")
    try:
        status = str(guest.folder / "status")
        until(lambda: read_report(status).phase == "waiting", lambda: guest.failed)
        (waiting,) = Path(f"/proc/{process.pid}/task").glob("*/children")
        run = Path(f"/proc/{int(waiting.read_text())}/root/run")
        os.close(os.open(run / "barrier", os.O_WRONLY))
        assert process.wait(20) == 1
    finally:
        process.kill()
    assert not guest.told


def test_nothing_is_written_through_what_an_image_has_in_its_place(
    guest: Guest,
) -> None:
    canary = guest.folder / "canary"
    canary.write_text("canary")
    etc = guest.root / "etc"
    for name, target in (
        *(("hostname", canary), ("hosts", guest.folder / "made")),
        *(("resolv.conf", "/dev/null"), ("machine-id", "../../canary")),
    ):
        (etc / name).symlink_to(target)
    guest.give(seed_of(machine()))
    assert guest.run() == 7, guest.failed
    assert canary.read_text() == "canary"
    assert not (guest.folder / "made").exists()
    for name in ("hostname", "hosts", "resolv.conf", "machine-id"):
        assert not (etc / name).is_symlink()
        assert (etc / name).stat().st_size


def test_a_folder_that_is_a_link_is_not_gone_through(guest: Guest) -> None:
    outside = guest.folder / "outside"
    outside.mkdir()
    (guest.root / "opt/openshell/auth").symlink_to(outside)
    guest.give(seed_of(machine()))
    assert guest.run() == 1
    assert "over/opt/openshell/auth" in guest.failed
    assert list(outside.iterdir()) == []
    assert not guest.told


def with_drop_ins(*texts: str) -> LaunchPlan:
    return machine(
        drop_ins=tuple(
            DropIn(name=f"{number}0-x", contents=text, extension="e")
            for number, text in enumerate(texts, 1)
        ),
        drop_in_environment={"OPENSHELL_VM_DATA_X": "1"},
    )


@pytest.fixture
def window(guest: Guest) -> Iterator[Guest]:
    """`/sysroot`, as init has it."""
    created = not Path("/sysroot").exists()
    yield guest
    if created and Path("/sysroot").exists():
        Path("/sysroot").rmdir()


def in_window(guest: Guest, made: LaunchPlan) -> int:
    guest.give(seed_of(made))
    there = OUTSIDE.replace("ip tuntap", 'mount --rbind "$1" /sysroot\nip tuntap')
    words = [str(guest.root), str(guest.folder), str(guest.program), ""]
    command = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork"]
    command += ["--kill-child", "sh", "-c", there, "sh", *words, ""]
    with (guest.folder / "console").open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode


SAYS = '#!/bin/sh\necho "$0 $OPENSHELL_VM_DATA_X $ROOT_PREFIX" >>/sysroot/said\n'


def test_drop_ins_run_in_order_before_the_supervisor(window: Guest) -> None:
    assert in_window(window, with_drop_ins(SAYS, SAYS)) == 7, window.failed
    said = (window.root / "said").read_text().splitlines()
    assert said == [f"/sysroot/opt/openshell/init.d/{n}0-x 1 /sysroot" for n in (1, 2)]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("#!/bin/sh\nexit 3\n", 3),
        ("#!/bin/sh\nkill -TERM $$\n", 128 + signal.SIGTERM),
        ("#!/nowhere\n", 127),
        ("no program", 126),
    ],
)
def test_a_drop_in_that_fails_ends_the_machine_with_its_status(
    window: Guest, text: str, status: int
) -> None:
    assert in_window(window, with_drop_ins(SAYS, text, SAYS)) == 1
    assert window.failed == f"init drop-in '20-x' failed with status {status}"
    assert not window.told
    assert len((window.root / "said").read_text().splitlines()) == 1


def with_content(data: bytes, name: str, text: bytes) -> bytes:
    """A seed with another content of that file: hostile, or of another driver's."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as had,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made,
    ):
        for entry in had:
            content = had.extractfile(entry)
            if entry.name == name:
                entry.size, content = len(text), io.BytesIO(text)
            made.addfile(entry, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("init/mac", b"0a:00:00:00:00\n", "no address of a card"),
        ("init/mac", b"0a:00:00:00:00:0g\n", "no address of a card"),
        ("init/mac", b"0a:00:00:00:00:0a:0b\n", "no address of a card"),
        ("init/mac", b"x" * 400, "init/mac"),
        ("init/address", b"10.0.0.2\n", "no address"),
        ("init/address", b"10.0.0.2/33\n", "no address"),
        ("init/address", b"10.0.0.2/-1\n", "no address"),
        ("init/address", b"10.0.0.2/1x\n", "no address"),
        ("init/address", b"10.0.0.256/30\n", "no address"),
        ("init/address", b"10.0.0.2\0/30\n", "init/address"),
        ("init/gateway", b"nowhere\n", "no address"),
        ("init/gateway", b"203.0.113.1\n", "the default route: Network is unreachable"),
        ("init/environ", b"A=1", "the supervisor's environment"),
        ("over/etc/hostname", b"h" * 65 + b"\n", "name cannot be set"),
        ("over/opt/openshell/init.d.manifest", b"../x\n", "no valid name"),
        ("over/opt/openshell/init.d.manifest", b"\n", "no valid name"),
        ("over/opt/openshell/init.d.manifest", b"gone\n", "missing or not executable"),
    ],
)
def test_what_a_seed_must_not_say_ends_the_machine_with_the_reason(
    guest: Guest, name: str, text: bytes, why: str
) -> None:
    guest.give(with_content(seed_of(machine()), name, text))
    assert guest.run() == 1
    assert why in guest.failed
    assert not guest.told
    assert read_report(str(guest.folder / "status")).phase == ""


@pytest.mark.parametrize("size", [0, 512, 65536 + 512, (64 << 20) + 65536])
def test_a_disk_of_another_size_than_a_seeds_is_refused(
    guest: Guest, size: int
) -> None:
    with (guest.folder / "seed").open("wb") as file:
        file.truncate(size)
    assert guest.run() == 1
    assert "size" in guest.failed


def test_a_disk_without_an_end_is_refused(guest: Guest) -> None:
    (guest.folder / "seed").write_bytes(b"x" * 2**20)
    assert guest.run() == 1
    assert guest.failed == "the seed disk cannot be read: a header is none"


def test_a_large_seed_is_read_to_its_end(guest: Guest) -> None:
    text = "#!/bin/sh\n" + "#" * 300_000 + "\0" * 5000 + "x" * 200_000
    made = with_drop_ins(text)
    guest.give(seed_of(made))
    guest.run()
    there = guest.root / "opt/openshell/init.d/10-x"
    assert there.read_text() == text


def test_a_guest_without_a_supervisor_says_so_on_its_console(guest: Guest) -> None:
    (guest.root / "opt/openshell/bin/openshell-sandbox").unlink()
    guest.give(seed_of(machine()))
    assert guest.run() == 127
    said = (guest.folder / "console").read_text()
    assert re.search("openshell-sandbox: No such file", said)


def test_a_guest_without_memory_says_so(guest: Guest) -> None:
    guest.give(seed_of(machine()))
    words = [str(guest.root), str(guest.folder), str(guest.program), ""]
    less = OUTSIDE.replace("status=0\n", "status=0\nulimit -v 1200\n")
    command = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork"]
    command += ["--kill-child", "sh", "-c", less, "sh", *words, ""]
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert done.returncode != 7
    assert not guest.told


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        ("size=4k,nr_inodes=20", "No space left on device"),
        ("nr_inodes=2", "No space left on device"),
        ("ro", "Read-only file system"),
    ],
)
def test_a_disk_that_takes_nothing_ends_the_machine_with_the_reason(
    guest: Guest, disk: str, why: str
) -> None:
    guest.give(seed_of(machine()))
    words = [str(guest.root), str(guest.folder), str(guest.program), ""]
    full = OUTSIDE.replace(
        "ip tuntap", f'mount -t tmpfs -o {disk} etc "$1/etc"\nip tuntap'
    )
    command = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork"]
    command += ["--kill-child", "sh", "-c", full, "sh", *words, ""]
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert done.returncode == 1
    assert guest.failed.startswith(
        "the seed cannot be copied into the guest: over/etc/"
    )
    assert guest.failed.endswith(why)
    assert not guest.told
