"""The box around a QEMU: what is rendered of it, and what `boxed-qemu` does before it is made."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_plan_rendering import (
    plan,
    with_devices,
    with_host_mounts,
    with_volumes,
)
from vmdriver.hypervisor.wall.box import (
    BOX_PARTS,
    Box,
    Ground,
    arguments,
    of_plan,
    rules,
)
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.model.passage import DIRECT, Passage
from vmdriver.model.plan import LaunchPlan, MachineUser

FILTER = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
GROUND = Ground("/usr/bin/bwrap", ("--symlink", "usr/bin", "/bin"))
EMULATOR = """#!/bin/sh
for word; do echo "word $word"; done
echo "files $(ulimit -f)/$(ulimit -H -n) score $(cat /proc/self/oom_score_adj) $(grep NoNewPrivs /proc/self/status)"
"""


def walled(**changes: object) -> LaunchPlan:
    return plan().model_copy(update={"wall": BOX_PARTS, **changes})


def text(box: Box) -> str:
    words = (
        " ".join(arguments(box, GROUND))
        .replace(" --", "\n--")
        .replace("\n--dir", " --dir")
    )
    return f"{words}\n\n{rules(box)}"


def test_the_box_of_a_machine_that_boots(golden: Callable[[str, str], None]) -> None:
    golden("box-boot.txt", text(of_plan(walled(), DIRECT, 2**31)))


def test_the_box_of_a_fork_on_kvm_with_a_user_of_its_own(
    golden: Callable[[str, str], None],
) -> None:
    wanted = walled(accelerator="kvm", user=MachineUser(uid=250001, gid=250000))
    way = Passage((("/state", "/run/vmd-qemu/state"),))
    golden("box-fork.txt", text(of_plan(wanted, way, 2**31, ["/state/templates/m"])))


def test_the_box_of_a_machine_with_folders_has_the_sockets_of_their_readers(
    golden: Callable[[str, str], None],
) -> None:
    wanted = with_host_mounts().model_copy(update={"wall": BOX_PARTS})
    way = Passage((("/state", "/run/vmd-qemu/state"),))
    golden("box-folders.txt", text(of_plan(wanted, way, 2**31)))


def test_the_box_of_a_machine_with_devices_has_their_groups_and_no_others(
    golden: Callable[[str, str], None],
) -> None:
    """Of sysfs one link for each, and no more address space and locked memory than they take."""
    wanted = with_devices(288, 512).model_copy(update={"wall": BOX_PARTS})
    golden("box-device.txt", text(of_plan(wanted, DIRECT, 2**31)))


def test_a_machines_volumes_are_in_its_box_and_as_large_as_they_are() -> None:
    box = of_plan(with_volumes(), DIRECT, 2**31)
    assert "/state/volumes/a/disk.raw" in box.writes
    assert "/state/volumes/b/disk.raw" in box.reads
    assert "/state/volumes/b/disk.raw" not in box.writes
    assert box.file_bytes > 2**40, "what it may write is as large as its largest disk"


def test_what_a_box_lacks_is_what_the_wall_lacks() -> None:
    for part, line in (("limits", "-n "), ("seccomp", "filtered"), ("box", "unboxed")):
        wanted = tuple(p for p in BOX_PARTS if p != part)
        box = of_plan(walled(wall=wanted), DIRECT, 0)
        assert (line in rules(box)) == (part == "box"), part
    assert "unboxed" not in rules(of_plan(walled(), DIRECT, 0))


@pytest.fixture(params=["of the shell's", "compiled"])
def boxes(tmp_path: Path, request: pytest.FixtureRequest) -> Boxes:
    """Both programs that may begin QEMU: what is asked of one is asked of the other."""
    ground = replace(GROUND, bwrap="/usr/bin/false")
    boxes = Boxes(tmp_path, ground=ground)
    if request.param == "compiled":
        asyncio.run(boxes.compile())
    return boxes


@pytest.fixture
def emulator(tmp_path: Path) -> str:
    path = tmp_path / "it's QEMU"
    path.write_text(EMULATOR)
    path.chmod(0o755)
    return str(path)


def begin(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words], capture_output=True, text=True, check=False, timeout=20
    )


def named(name: str) -> tuple[str, ...]:
    return ("-name", f"guest={name},debug-threads=on", "-sandbox", FILTER)


def test_a_qemu_that_a_daemon_begins_has_a_network_namespace_without_anything() -> None:
    network = plan().network
    for moved in (False, True):
        other = network.model_copy(update={"moved": moved})
        box = of_plan(walled(network=other), DIRECT, 0)
        assert ("--unshare-net" in arguments(box, GROUND)) == moved
        assert ("apart" in rules(box)) == moved


def test_qemu_is_asked_what_it_can_do_as_if_nothing_stood_before_it(
    boxes: Boxes, emulator: str
) -> None:
    program = boxes.make("m", emulator, Box())
    done = begin(program, "-S", "-machine", "none,accel=kvm:tcg", "a b", "")
    assert done.returncode == 0, done.stderr
    words = [x for x in done.stdout.splitlines() if x.startswith("word ")]
    assert words == [
        *("word -S", "word -machine", "word none,accel=kvm:tcg", "word a b", "word ")
    ]


def test_a_machine_without_a_box_is_not_begun(boxes: Boxes, emulator: str) -> None:
    program = boxes.make("m", emulator, Box())
    boxes.remove("m")
    for name in ("m", "other", "../m", ".m", "boxes/m"):
        done = begin(program, *named(name))
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("boxed-qemu: ")
    assert "there is no box for m" in begin(program, *named("m")).stderr


def test_a_box_that_cannot_be_made_begins_nothing(boxes: Boxes, emulator: str) -> None:
    """bwrap is /usr/bin/false here."""
    done = begin(boxes.make("m", emulator, Box(memory_mib=64)), *named("m"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the box of m could not be made" in done.stderr


@pytest.mark.parametrize(
    "filtered",
    ["", "off", "on", FILTER.replace("spawn=deny", "spawn=allow"), f"off{FILTER[2:]}"],
)
def test_a_qemu_that_does_not_filter_its_system_calls_is_not_begun(
    boxes: Boxes, emulator: str, filtered: str
) -> None:
    program = boxes.make("m", emulator, Box(parts=("seccomp",)))
    words = ("-name", "guest=m", *(("-sandbox", filtered) if filtered else ()))
    done = begin(program, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert "seccomp_sandbox" in done.stderr
    assert begin(program, *named("m")).returncode == 0


def test_limits_hold_without_a_box_too_and_a_lower_one_stays(
    boxes: Boxes, emulator: str
) -> None:
    wanted = Box(memory_mib=64, file_bytes=2**20, parts=("limits", "seccomp"))
    program = boxes.make("m", emulator, wanted)
    done = begin(program, *named("m"))
    assert done.returncode == 0, done.stderr
    assert "files 2048/1024 score 600 NoNewPrivs:\t1" in done.stdout
    lower = begin(
        "/bin/sh", "-c", 'ulimit -n 200; exec "$@"', "sh", program, *named("m")
    )
    assert "files 2048/200 " in lower.stdout, lower.stderr
    as_high = "ulimit -S -f 100; ulimit -H -f 2048"
    raised = begin("/bin/sh", "-c", f'{as_high}; exec "$@"', "sh", program, *named("m"))
    assert "files 2048/1024 " in raised.stdout, raised.stderr


def test_memory_that_may_be_locked_is_bounded_where_there_are_devices(
    boxes: Boxes, emulator: str
) -> None:
    Path(emulator).write_text('#!/bin/sh\necho "locked $(ulimit -H -l)"\n')
    wanted = Box(memory_mib=64, locked_mib=1, parts=("limits", "seccomp"))
    program = boxes.make("m", emulator, wanted)
    done = begin(program, *named("m"))
    assert done.stdout == "locked 1024\n", done.stderr
    lower = begin(
        "/bin/sh", "-c", 'ulimit -l 64; exec "$@"', "sh", program, *named("m")
    )
    assert lower.stdout == "locked 64\n", lower.stderr


def test_what_it_does_not_understand_is_no_reason_to_go_on(
    boxes: Boxes, emulator: str
) -> None:
    program = boxes.make("m", emulator, Box(parts=()))
    (boxes.root / "boxes" / "m.rules").write_text("unboxed\nnext-years-rule\n")
    done = begin(program, *named("m"))
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    "torn",
    ["die-before 600", "-f\n", "-f 10k\n", "-x 1\n", "-ff 1\n", "\n", "filtered-not\n"],
)
def test_rules_that_are_not_whole_begin_nothing(
    boxes: Boxes, emulator: str, torn: str
) -> None:
    program = boxes.make("m", emulator, Box(parts=()))
    (boxes.root / "boxes" / "m.rules").write_text(f"unboxed\n{torn}")
    done = begin(program, *named("m"))
    if torn.endswith("\n"):
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
    else:  # the shell's does not see what has no end
        assert done.returncode == (boxes.compiled is not None)


def test_a_program_that_was_changed_is_written_anew(
    boxes: Boxes, emulator: str
) -> None:
    program = Path(boxes.make("m", emulator, Box()))
    before = program.read_bytes()
    program.write_bytes(before + b"more")
    boxes.make("m", emulator, Box())
    assert program.read_bytes() == before
    program.unlink()
    boxes.make("m", emulator, Box())
    assert program.read_bytes() == before


def test_the_program_is_another_one_when_qemu_is(boxes: Boxes, emulator: str) -> None:
    """libvirt asks a program what it can do once for each of its versions."""
    program = Path(boxes.make("m", emulator, Box()))
    first = program.stat()
    boxes.make("m", emulator, Box())
    assert program.stat().st_ino == first.st_ino
    Path(emulator).write_text(EMULATOR + "\n# upgraded\n")
    boxes.make("m", emulator, Box())
    assert program.stat().st_ino != first.st_ino
    assert not list(program.parent.rglob("*.part"))


@pytest.mark.parametrize("content", [None, b"", b"torn"])
def test_without_what_was_compiled_a_changed_qemu_is_begun_by_the_shells(
    tmp_path: Path, emulator: str, content: bytes | None
) -> None:
    """The driver goes on for weeks with what it found when it was begun."""
    boxes, box = Boxes(tmp_path, ground=GROUND), Box(parts=("seccomp",))
    asyncio.run(boxes.compile())
    assert boxes.compiled is not None
    boxes.make("m", emulator, box)
    boxes.compiled.unlink()
    if content is not None:
        boxes.compiled.write_bytes(content)
    Path(emulator).write_text(EMULATOR + "\n# upgraded\n")
    for _ in range(2):
        program = boxes.make("m", emulator, box)
        assert Path(program).read_bytes().startswith(b"#!")
        done = begin(program, *named("m"))
        assert (done.returncode, done.stderr) == (0, "")
