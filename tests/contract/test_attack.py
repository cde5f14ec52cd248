"""An attack from a process that has the whole wall comes to nothing; where one control is weakened, its own line says so, and no other.

The process is no QEMU, but it is in a box, a network namespace and limits as one is, and the attacks on it are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from vmdriver.cli.doctor import attack
from vmdriver.cli.doctor.attack_evidence import Evidence, Golden
from vmdriver.host.target import facts, identity
from vmdriver.storage.layout import Layout

UID = 270_000 + os.getpid() % 10_000  # a worker beside this one runs the same tests
GID = 250_000
STAND_IN = """
import ctypes, mmap, os, signal, struct, sys
own, shared, filtered = sys.argv[1:]
held = open(own, "r+b"), open(shared, "rb")
memory = mmap.mmap(held[1].fileno(), 0, flags=mmap.MAP_PRIVATE)
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
if filtered == "yes":
    rules = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(rules)))
    assert libc.prctl(22, 2, program, 0, 0) == 0
print(os.getpid(), flush=True)
signal.pause()
"""


@dataclass
class Wall:
    """What the process gets; a test takes something away, or adds to what is there."""

    limits: tuple[str, ...] = (
        *("--core=0", "--nofile=1024", "--nproc=256", f"--fsize={2**30}"),
        f"--as={2**33}",
    )
    oom_score_adj: int = 600
    network: tuple[str, ...] = ("unshare", "--net", "--")
    user: tuple[str, ...] = (
        *("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"),
        *("--bounding-set=-all", "--inh-caps=-all", "--"),
    )
    boxed: bool = True
    more: tuple[str, ...] = ()
    """Arguments of bwrap."""
    filtered: str = "yes"
    begun: list[subprocess.Popen[str]] = field(default_factory=list)


@dataclass
class Scene:
    """Files of the process's own, shared ones, and others'."""

    own: Path
    shared: Path
    others: Path
    wall: Wall
    sockets: list[Path] = field(default_factory=list)
    """Others', too."""
    listening: list[socket.socket] = field(default_factory=list)

    def begin(self) -> int:
        """The process's id."""
        wall = self.wall
        bind = ("--bind", str(self.own), str(self.own))
        seen = (*bind, "--ro-bind", str(self.shared), str(self.shared))
        ways = [
            word
            for folder in reversed(self.own.parents)
            if folder != Path("/")
            for word in ("--perms", "0755", "--dir", str(folder))
        ]
        links = [
            word
            for name in ("bin", "lib", "lib64")
            for word in ("--symlink", f"usr/{name}", f"/{name}")
        ]
        box = (
            *("bwrap", "--unshare-user", "--unshare-ipc", "--unshare-uts"),
            *("--die-with-parent", "--ro-bind", "/usr", "/usr", *links),
            *("--tmpfs", "/dev", "--dev-bind", "/dev/null", "/dev/null"),
            *(*ways, *seen, *wall.more, "--"),
        )
        score = f'echo {wall.oom_score_adj} >/proc/self/oom_score_adj; exec "$@"'
        program = ("/usr/bin/python3", "-I", "-S", "-c", STAND_IN)
        words = (
            *("sh", "-c", score, "sh", "prlimit", *wall.limits, "--"),
            *(*wall.network, *wall.user, *(box if wall.boxed else ())),
            *(*program, str(self.own), str(self.shared), wall.filtered),
        )
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.wall.begun.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    def golden(self) -> Golden:
        own, shared = identity(self.own), identity(self.shared)
        assert own is not None
        assert shared is not None
        return Golden(
            uid=UID,
            gid=GID,
            own=frozenset({own}),
            shared=frozenset({shared}),
            own_name="vm-1-own",
            parts=frozenset(),
            oom_score_adj=500,
        )

    async def attacked(self, golden: Golden | None = None) -> list[Evidence]:
        pid = self.begin()
        others = [str(self.others), "/etc/shadow", *map(str, self.sockets)]
        meant = golden or self.golden()
        return await attack.attempts(facts(pid), meant, [self.shared], others)


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    base = tmp_path_factory.mktemp("scene")
    for folder in (base, *base.parents[:-2]):
        folder.chmod(0o755)
    own, shared, others = base / "own", base / "shared", base / "others"
    for path, mode in ((own, 0o600), (shared, 0o440), (others, 0o600)):
        path.write_bytes(bytes(4096))
        path.chmod(mode)
    os.chown(own, UID, GID)
    os.chown(shared, 0, GID)
    found = Scene(own, shared, others, Wall())
    yield found
    # The box's first process takes the one in it along.
    for process in found.wall.begun:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    for end in found.listening:
        end.close()
    until(lambda: not running(), "something of a test goes on")


def running() -> list[Path]:
    """Processes of that user."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (process / "status").read_text()
            if f"Uid:\t{UID}" in text and "State:\tZ" not in text:
                found.append(process)
    return found


def failing(found: list[Evidence]) -> set[str]:
    return {one.control for one in found if one.level == "fail"}


async def test_a_process_behind_the_whole_wall_gets_nowhere(scene: Scene) -> None:
    found = await scene.attacked()
    assert [one for one in found if one.level == "fail"] == []
    named = {one.control for one in found}
    assert named == {
        *("uid", "namespace", "box", "seccomp", "limits", "sealed-memory", "cgroup")
    }


def same_user(scene: Scene) -> None:
    words = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups")
    process = subprocess.Popen([*words, "sleep", "600"], text=True)
    scene.wall.begun.append(process)
    while f"Uid:\t{UID}" not in Path(f"/proc/{process.pid}/status").read_text():
        assert process.poll() is None


def readable_others(scene: Scene) -> None:
    scene.others.chmod(0o604)


def open_socket(scene: Scene) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        path = scene.others.with_name("orders.sock")
        end.bind(str(path))
        end.listen()
        path.chmod(0o666)
        scene.sockets.append(path)
        scene.listening.append(end.dup())


def hosts_network(scene: Scene) -> None:
    scene.wall.network = ()


def no_box(scene: Scene) -> None:
    scene.wall.boxed = False


def one_file_more(scene: Scene) -> None:
    path = str(scene.others)
    scene.wall.more = ("--ro-bind", path, path)


def sees_processes(scene: Scene) -> None:
    scene.wall.more = ("--ro-bind", "/proc", "/proc")


def no_filter(scene: Scene) -> None:
    scene.wall.filtered = "no"


def without_limit(name: str) -> Callable[[Scene], None]:
    def weaken(scene: Scene) -> None:
        kept = [limit for limit in scene.wall.limits if not limit.startswith(name)]
        scene.wall.limits = (*kept, f"{name}=unlimited")

    return weaken


def many(which: int, name: str) -> Callable[[Scene], None]:
    """As many as this process may have: root in a container may not be allowed more."""

    def weaken(scene: Scene) -> None:
        _, most = resource.getrlimit(which)
        assert most == resource.RLIM_INFINITY or most > 10_000
        kept = [limit for limit in scene.wall.limits if not limit.startswith(name)]
        text = "unlimited" if most == resource.RLIM_INFINITY else str(most)
        scene.wall.limits = (*kept, f"{name}={text}")

    return weaken


def outlives_the_driver(scene: Scene) -> None:
    scene.wall.oom_score_adj = 0


def writable_template(scene: Scene) -> None:
    scene.shared.chmod(0o460)


@pytest.mark.parametrize(
    ("control", "weaken"),
    [
        ("uid", same_user),
        ("uid", readable_others),
        ("uid", open_socket),
        ("namespace", hosts_network),
        ("box", no_box),
        ("box", one_file_more),
        ("box", sees_processes),
        ("seccomp", no_filter),
        ("limits", without_limit("--core")),
        ("limits", without_limit("--fsize")),
        ("limits", many(resource.RLIMIT_NPROC, "--nproc")),
        ("limits", without_limit("--as")),
        ("limits", many(resource.RLIMIT_NOFILE, "--nofile")),
        ("limits", outlives_the_driver),
        ("sealed-memory", writable_template),
    ],
)
async def test_a_weakened_control_changes_its_own_line_alone(
    control: str, weaken: Callable[[Scene], None], scene: Scene
) -> None:
    weaken(scene)
    with socket.create_server(("127.0.0.1", 0)), abstract_socket():
        found = await scene.attacked()
    assert failing(found) == {control}, found


def abstract_socket() -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.bind(f"\0vmdriver-test-{os.getpid()}")
    end.listen()
    return end


async def test_what_is_reached_in_the_hosts_network_is_named(scene: Scene) -> None:
    hosts_network(scene)
    with socket.create_server(("127.0.0.1", 0)) as server, abstract_socket() as end:
        found = await scene.attacked()
        port = server.getsockname()[1]
        name = "@" + end.getsockname().decode()[1:]
    texts = [one.text for one in found if one.control == "namespace"]
    assert any("the host's" in text for text in texts)
    reached = next(text for text in texts if text.startswith("reached"))
    assert f":{port}" in reached or name in reached or "more" in reached


async def test_a_run_without_a_user_of_its_own_is_said_to_be_one(scene: Scene) -> None:
    meant = replace(scene.golden(), uid=None)
    found = await scene.attacked(meant)
    assert "uid" in failing(found)


async def test_a_cgroup_that_was_planned_and_has_no_limits_is_a_surprise(
    scene: Scene,
) -> None:
    meant = replace(scene.golden(), parts=frozenset({"cgroup"}))
    assert failing(await scene.attacked(meant)) == {"cgroup"}


async def test_where_there_is_no_cgroup_that_is_said_and_is_no_failure(
    scene: Scene,
) -> None:
    (one,) = [one for one in await scene.attacked() if one.control == "cgroup"]
    assert one.level == "warn"


# --- flushed rules


@pytest.fixture
async def namespace() -> AsyncIterator[list[str]]:
    """Enters a network namespace with a table in it."""
    holder = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "--", "sh", "-c", "echo in && exec sleep 600"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    await holder.stdout.readline()
    enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    load(enter)
    yield enter
    holder.kill()
    await holder.wait()


def load(enter: list[str]) -> None:
    rules = "add table inet t { chain c { type filter hook input priority 0; counter drop; }; }"
    subprocess.run([*enter, "nft", rules], check=True)


async def test_rules_that_somebody_restores_are_whole_again(
    namespace: list[str],
) -> None:
    show, flush = ([*namespace, "nft", verb, "ruleset"] for verb in ("list", "flush"))

    async def restore() -> None:
        while (await asyncio.to_thread(subprocess.check_output, show)).strip():
            await asyncio.sleep(0.01)
        await asyncio.to_thread(load, namespace)

    restoring = asyncio.create_task(restore())
    found = await attack.flushed("it", show, flush)
    await restoring
    assert found.level == "ok", found.text


async def test_rules_that_nobody_restores_are_a_surprise(namespace: list[str]) -> None:
    show, flush = ([*namespace, "nft", verb, "ruleset"] for verb in ("list", "flush"))
    found = await attack.flushed("it", show, flush)
    assert (found.control, found.level) == ("firewall", "fail")
    assert "gone" in found.text


def test_a_layer_that_every_machine_may_read_is_nobody_elses(tmp_path: Path) -> None:
    """With a template there, the attack on each machine was said to have got too far."""
    layout = Layout(tmp_path)
    template = layout.layers / "template-4f1c.9b1e.qcow2"
    of_another = layout.layers / "250003" / "other.qcow2"
    of_another.parent.mkdir(parents=True)
    for path in (template, of_another):
        path.touch()
    known = frozenset(
        found for path in attack.told(layout) if (found := identity(path))
    )
    assert list(attack.private(layout, known))[-1:] == [str(of_another)]


def test_the_command_says_which_machine_it_cannot_find(tmp_path: Path) -> None:
    words = ["doctor", "--attack", "nobody", "--state-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "vmdriver", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no machine of sandbox nobody runs" in done.stderr
