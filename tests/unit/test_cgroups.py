"""A cgroup for each machine: what is written, what is refused, what is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.fakes.cgroup_tree import FakeCgroupTree
from tests.unit.test_plan_rendering import plan as example_plan
from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.wall import cgroup_limits
from vmdriver.hypervisor.wall.cgroup_place import Place, find
from vmdriver.hypervisor.wall.cgroups import Cgroups
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.spec import Resources

ALL = frozenset({"memory", "pids", "cpu", "io"})
MOUNTS = "cgroup2 {} cgroup2 rw 0 0\nproc /proc proc rw 0 0\n"
DRIVER, QEMU, HOLDER, OTHER = 10, 21, 20, 99


def plan(**changes: object) -> LaunchPlan:
    value = example_plan(resources=Resources(memory_mib=512, cpu_millis=2000))
    return value.model_copy(update={"wall": ("cgroup",), **changes})


class Stage:
    """A driver in /unit, whose machine is two processes: what holds its box, and QEMU in it."""

    def __init__(self, tmp: Path, controllers: frozenset[str] = ALL) -> None:
        self.root = tmp / "cgroup"
        self.tree = FakeCgroupTree(self.root, set(controllers), {OTHER})
        self.unit = self.root / "unit"
        self.tree.nodes[self.root].handed_out = set(controllers)
        self.tree.make(self.unit)
        self.tree.nodes[self.unit].processes = {DRIVER, HOLDER, QEMU}
        self.run = tmp / "run"
        self.run.mkdir()
        for pid, children in ((HOLDER, f"{QEMU} "), (QEMU, "")):
            task = tmp / "proc" / str(pid) / "task" / str(pid)
            task.mkdir(parents=True)
            (task / "children").write_text(children)
        self.tmp, self.domain = tmp, plan().domain
        self.cgroups = self.driver()
        self.cgroups.prepare()

    def driver(self, place: Place | None = None) -> Cgroups:
        """A driver process."""
        return Cgroups(
            place or Place(self.unit),
            "vmdriver",
            "8:0",
            self.run,
            self.tree,
            self.tmp / "proc",
            empty_s=0.05,
        )

    @property
    def machine(self) -> Path:
        return self.unit / "vmdriver" / self.domain

    def start(self) -> None:
        """What libvirt does."""
        (self.run / f"{self.domain}.pid").write_text(str(HOLDER))

    def end(self) -> None:
        for node in self.tree.nodes.values():
            node.processes -= {HOLDER, QEMU}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_machine_may_have_its_memory_and_some_more_and_no_more_cpus_than_it_has() -> (
    None
):
    found = cgroup_limits.files(plan(accelerator="kvm"), ALL, "8:0")
    assert found == {
        "memory.max": str((512 + 256) * 2**20),
        "memory.oom.group": "1",
        "pids.max": "130",
        "cpu.max": "300000 100000",
    }
    on_tcg = cgroup_limits.files(plan(translated_mib=None), ALL, "")
    assert on_tcg["memory.max"] == str((512 + 256 + 1024) * 2**20)
    bounded = cgroup_limits.files(plan(translated_mib=128), ALL, "")
    assert bounded["memory.max"] == str((512 + 256 + 128) * 2**20)


def test_a_request_for_a_part_of_a_cpu_is_a_limit_of_the_kernels_too() -> None:
    found = cgroup_limits.files(plan(cpu_quota_millis=1500), ALL, "")
    assert found["cpu.max"] == "150000 100000"


@pytest.mark.parametrize(
    ("iops", "mib_s", "text"),
    [
        (100, None, "8:0 rbps=max wbps=max riops=100 wiops=100"),
        (None, 5, "8:0 rbps=5242880 wbps=5242880 riops=max wiops=max"),
    ],
)
def test_a_throttle_is_the_kernels_too_where_the_disk_is_known(
    iops: int | None, mib_s: int | None, text: str
) -> None:
    limited = plan(disk_iops=iops, disk_mib_s=mib_s)
    assert cgroup_limits.files(limited, ALL, "8:0")["io.max"] == text
    assert "io.max" not in cgroup_limits.files(limited, ALL, "")
    assert "io.max" not in cgroup_limits.files(limited, ALL - {"io"}, "8:0")


def test_nothing_is_in_the_place_itself_and_the_driver_goes_on_beside(
    stage: Stage,
) -> None:
    assert stage.tree.of(DRIVER) == stage.unit / "driver"
    assert stage.tree.nodes[stage.unit].handed_out == set(ALL)
    assert stage.cgroups.controllers == ALL
    assert stage.cgroups.problem == ""


def test_a_machine_is_in_its_own_cgroup_with_all_its_processes(stage: Stage) -> None:
    stage.cgroups.begin(plan(), stage.start, stage.end)
    assert {stage.tree.of(pid) for pid in (HOLDER, QEMU)} == {stage.machine}
    wanted = cgroup_limits.files(plan(), ALL, "")
    assert stage.tree.nodes[stage.machine].limits == wanted
    stage.end()
    for _ in range(2):
        stage.cgroups.remove(stage.domain)
    assert stage.machine not in stage.tree.nodes


@pytest.mark.parametrize("gone", [FileNotFoundError, ProcessLookupError])
def test_a_thread_that_ends_while_it_is_looked_at_costs_no_machine(
    stage: Stage, gone: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's threads come and go. /proc then says ENOENT at the open, or ESRCH at the read."""
    thread = stage.tmp / "proc" / str(HOLDER) / "task" / "1" / "children"
    thread.parent.mkdir()
    thread.touch()
    read, looked = Path.read_text, []

    def ended_meanwhile(path: Path) -> str:
        if path != thread:
            return read(path)
        looked.append(path)
        raise gone(path)

    monkeypatch.setattr(Path, "read_text", ended_meanwhile)
    stage.cgroups.begin(plan(), stage.start, stage.end)
    assert looked
    assert {stage.tree.of(pid) for pid in (HOLDER, QEMU)} == {stage.machine}


def test_the_limits_are_there_before_the_machine_is(stage: Stage) -> None:
    def start() -> None:
        assert "memory.max" in stage.tree.nodes[stage.machine].limits
        stage.start()

    stage.cgroups.begin(plan(), start, stage.end)
    assert stage.tree.of(QEMU) == stage.machine


def test_a_plan_without_one_gets_none(stage: Stage) -> None:
    stage.cgroups.begin(plan(wall=()), stage.start, stage.end)
    assert stage.machine not in stage.tree.nodes


@pytest.mark.parametrize("file", ["memory.max", "pids.max", "cpu.max"])
def test_a_machine_that_cannot_be_limited_is_not_begun(stage: Stage, file: str) -> None:
    stage.tree.refused[file] = errno.EINVAL
    with pytest.raises(HypervisorError, match="cannot be changed"):
        stage.cgroups.begin(plan(), lambda: pytest.fail("begun"), stage.end)


def test_a_machine_that_cannot_be_put_into_its_cgroup_is_ended(stage: Stage) -> None:
    stage.tree.refused["cgroup.procs"] = errno.EPERM
    with pytest.raises(HypervisorError, match="cannot be changed"):
        stage.cgroups.begin(plan(), stage.start, stage.end)
    assert not [n for n in stage.tree.nodes.values() if QEMU in n.processes]


def test_a_disk_that_cannot_be_limited_costs_nothing(stage: Stage) -> None:
    """QEMU throttles all the same."""
    stage.tree.refused["io.max"] = errno.ENODEV
    stage.cgroups.begin(plan(disk_iops=50), stage.start, stage.end)
    assert stage.tree.of(QEMU) == stage.machine


def test_what_is_left_in_a_machines_cgroup_is_ended(stage: Stage) -> None:
    stage.cgroups.begin(plan(), stage.start, stage.end)
    stage.cgroups.remove(stage.domain)
    assert stage.machine not in stage.tree.nodes


def test_a_process_that_does_not_end_is_told(stage: Stage) -> None:
    stage.cgroups.begin(plan(), stage.start, stage.end)
    stage.tree.deaf = {QEMU}
    with pytest.raises(HypervisorError, match="do not end"):
        stage.cgroups.remove(stage.domain)
    stage.tree.deaf = set()
    stage.cgroups.remove(stage.domain)
    assert stage.machine not in stage.tree.nodes


def test_a_later_driver_keeps_machines_that_run_and_removes_what_others_left(
    stage: Stage,
) -> None:
    stage.cgroups.begin(plan(), stage.start, stage.end)
    gone = plan(domain="vmdriver-gone")
    stage.cgroups.make(gone)  # killed before it began the machine
    again = stage.driver()
    again.prepare()
    assert stage.tree.of(QEMU) == stage.machine
    assert stage.unit / "vmdriver" / gone.domain not in stage.tree.nodes
    stage.end()
    again.remove(stage.domain)
    assert stage.machine not in stage.tree.nodes


def test_a_machine_that_becomes_somebodys_gets_the_limits_of_now(stage: Stage) -> None:
    stage.cgroups.begin(plan(), stage.start, stage.end)
    stage.cgroups.make(plan(cpu_quota_millis=500))
    assert stage.tree.nodes[stage.machine].limits["cpu.max"] == "50000 100000"
    assert stage.tree.of(QEMU) == stage.machine


@pytest.mark.parametrize(
    ("file", "code"),
    [("cgroup.subtree_control", errno.EBUSY), ("cgroup.procs", errno.EACCES)],
)
def test_where_the_place_cannot_be_prepared_machines_have_none_and_it_is_said(
    tmp_path: Path, file: str, code: int
) -> None:
    stage = Stage(tmp_path)
    stage.tree.nodes[stage.unit].processes = {DRIVER}
    stage.tree.nodes[stage.unit].handed_out = set()
    stage.tree.refused[file] = code
    driver = stage.driver()
    driver.prepare()
    assert driver.controllers == frozenset()
    assert os.strerror(code) in driver.problem
    driver.remove(stage.domain)
    with pytest.raises(HypervisorError, match="no cgroup"):
        driver.begin(plan(), stage.start, stage.end)


def test_without_the_controllers_of_less_importance_there_are_the_others(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, frozenset({"memory", "pids"}))
    stage.cgroups.begin(plan(), stage.start, stage.end)
    assert set(stage.tree.nodes[stage.machine].limits) == {
        *("memory.max", "memory.oom.group", "pids.max")
    }


def folder_of(path: Path, controllers: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.type").write_text("domain")
    return path


def root_of(path: Path, controllers: str) -> Path:
    (folder_of(path, controllers) / "cgroup.type").unlink()
    return path


def test_a_place_is_the_operators_or_the_drivers_own(tmp_path: Path) -> None:
    root = root_of(tmp_path / "c", "cpu io memory pids")
    folder = folder_of(root / "a" / "b", "memory pids")
    mounts = MOUNTS.format(root)
    assert find(str(folder), mounts, "0::/elsewhere", None) == Place(folder)
    assert find("auto", mounts, "0::/", None) == Place(root, is_root=True)
    assert find("auto", mounts, "9:cpu:/x\n0::/a/b\n", None) == Place(folder)
    in_container = MOUNTS.format(folder)
    assert find("auto", in_container, "0::/", None) == Place(folder), (
        "no root of a host"
    )


def test_a_place_that_systemd_leaves_to_its_service_is_found_from_below(
    tmp_path: Path,
) -> None:
    root = folder_of(tmp_path / "c", "memory pids")
    unit = folder_of(root / "system.slice" / "v.service", "memory pids")
    folder_of(unit / "driver", "memory pids")
    delegated = {unit}
    mounts, name = MOUNTS.format(root), "0::/system.slice/v.service"
    for own in (name, f"{name}/driver"):
        assert find("auto", mounts, own, delegated.__contains__) == Place(unit)
    refused = find("auto", mounts, name, lambda _folder: False)
    assert refused.folder is None
    assert "Delegate=yes" in refused.why


@pytest.mark.parametrize(
    ("wanted", "mounts", "own", "why"),
    [
        ("auto", "", "0::/", "not mounted"),
        ("auto", "tmpfs /x tmpfs rw 0 0\n", "0::/", "not mounted"),
        ("auto", MOUNTS, "", "cannot be made out"),
        ("auto", MOUNTS, "0::/../../outside", "cannot be made out"),
        ("auto", MOUNTS, "0::/", "no controller memory, pids"),
        ("/nowhere", MOUNTS, "0::/", "no folder of cgroup v2"),
        ("off", MOUNTS, "0::/", "is off"),
    ],
)
def test_where_there_is_no_place_one_line_says_why(
    tmp_path: Path, wanted: str, mounts: str, own: str, why: str
) -> None:
    root = folder_of(tmp_path / "c", "hugetlb")
    found = find(wanted, mounts.format(root), own, None)
    assert found.folder is None
    assert why in found.why
    assert "\n" not in found.why
