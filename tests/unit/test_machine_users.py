"""Numbers for machines: which there are, who has which, and that no other driver has them."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from pathlib import Path

import pytest
from pydantic import ValidationError

from vmdriver.config import config_of
from vmdriver.config.views import machine_uids
from vmdriver.errors import ConfigError, Exhausted, Refused
from vmdriver.host.users import ids as users
from vmdriver.host.users.uid_claim import UidClaim
from vmdriver.lifecycle.launch.users import UserPool
from vmdriver.model.machine_uids import MachineUids
from vmdriver.storage.layers.machine_users import has_claims
from vmdriver.storage.layout import Layout


def unused(_name: str, _first: int, _last: int) -> bool:
    return False


def test_the_first_numbers_are_no_machines() -> None:
    uids = MachineUids(250000, 250004)
    assert list(uids.numbers) == [250002, 250003, 250004]
    assert uids.probe.uid == 250001
    assert {uids.user(n).gid for n in uids.numbers} == {uids.shared_gid} == {250000}


def test_each_owner_gets_one_number_and_keeps_it() -> None:
    pool = UserPool(MachineUids(250000, 250004))
    numbers = [pool.take(f"s{n}", set()) for n in range(3)]
    assert numbers == [250002, 250003, 250004]
    assert pool.take("s1", set()) == 250003
    with pytest.raises(Exhausted, match="250000-250004"):
        pool.take("s3", set())
    pool.free("s1")
    assert pool.take("s3", set()) == 250003


def test_a_freed_number_is_the_last_to_be_used_again() -> None:
    pool = UserPool(MachineUids(250000, 250004))
    pool.take("a", set())
    pool.free("a")
    assert pool.take("b", set()) == 250003


def test_a_number_with_something_left_is_passed_over() -> None:
    pool = UserPool(MachineUids(250000, 250004))
    assert pool.take("a", set()) == 250002
    assert pool.take("a", {250002}) == 250003
    assert pool.holder(250002) is None
    with pytest.raises(Exhausted):
        pool.take("a", set(pool.uids.numbers))


def test_numbers_that_are_left_are_counted_at_once_however_many_there_are() -> None:
    """Metrics ask with each look, in the loop; all of them in a set took the host's memory."""
    pool = UserPool(MachineUids(1000, 2**31 - 1))
    every = len(pool.uids.numbers)
    pool.adopt("s1", 5000)
    pool.adopt("old", 900)  # of a range that the operator had before
    pool.avoid({5000, 5001, 0})
    tracemalloc.start()
    try:
        assert pool.left() == every - 2
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_a_ledger_holds_is_nobody_elses_and_what_none_explains_nobodys() -> None:
    pool = UserPool(MachineUids(250000, 250006))
    pool.adopt("s1", 250003)
    pool.adopt("old", 90000)  # of a range that the operator had before
    pool.avoid({250003, 250004, 0})
    assert pool.held() == {250003, 90000}
    assert [pool.take(name, set()) for name in "abc"] == [250005, 250006, 250002]
    assert pool.number_of("s1") == 250003
    with pytest.raises(Exhausted):
        pool.take("d", set())


def test_a_state_directory_has_numbers_of_its_own_unless_the_operator_says() -> None:
    assert machine_uids(config_of({})) == MachineUids(250000, 259999)
    named = config_of({"machine_uids": " 300000 - 300099"})
    assert machine_uids(named) == MachineUids(300000, 300099)
    others = [machine_uids(config_of({"state_dir": f"/srv/{n}"})) for n in range(50)]
    assert all(1879048192 <= o.first <= o.last <= 2147352575 for o in others)
    assert all(o.last - o.first == 9999 for o in others)
    apart = {o.first for o in others}
    assert len(apart) > 45, "they rarely meet, and a lock tells when they do"


@pytest.mark.parametrize(
    "text", ["250000", "0-70000", "250000-250001", "9-8", "1000-99999999999", "a-b"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="machine_uids"):
        config_of({"machine_uids": text})


async def test_of_two_drivers_with_a_number_in_common_the_second_is_refused(
    tmp_path: Path,
) -> None:
    place = tmp_path / "claims"
    first = UidClaim(1000, 1999, "/first", unused, place)
    await first.acquire()
    for begin, end in ((1000, 1999), (1999, 2998), (1200, 1300), (1, 1000), (1, 9999)):
        with pytest.raises(ConfigError, match="machine_uids") as refused:
            await UidClaim(begin, end, "/second", unused, place).acquire(wait_s=0)
        assert "the driver of /first has 1000-1999" in refused.value.message
        assert refused.value.resolution
    beside = UidClaim(2000, 2999, "/beside", unused, place)
    await beside.acquire(wait_s=0)
    first.release()
    second = UidClaim(1500, 1999, "/second", unused, place)
    await second.acquire(wait_s=0)
    names = {path.name for path in place.iterdir()}
    assert names == {"1500-1999", "2000-2999"}
    beside.release()
    second.release()


async def test_numbers_of_a_driver_that_rests_are_nobody_elses_while_it_has_sandboxes(
    tmp_path: Path,
) -> None:
    place, resting = tmp_path / "claims", Layout(tmp_path / "resting")
    resting.make()
    (resting.layers / "1500").mkdir()
    first = UidClaim(1000, 1999, str(resting.root), has_claims, place)
    await first.acquire(wait_s=0)
    first.release()
    with pytest.raises(ConfigError, match="has machines or files of 1000-1999"):
        await UidClaim(1900, 2999, "/other", has_claims, place).acquire(wait_s=0)
    again = UidClaim(1000, 2999, str(resting.root), has_claims, place)
    await again.acquire(wait_s=0)
    again.release()
    (resting.layers / "1500").rmdir()
    other = UidClaim(1900, 2999, "/other", has_claims, place)
    await other.acquire(wait_s=0)
    other.release()


async def test_numbers_of_a_range_that_was_moved_or_shrunk_stay_its_drivers_while_they_are_had(
    tmp_path: Path,
) -> None:
    place, moved = tmp_path / "claims", Layout(tmp_path / "moved")
    moved.make()
    (moved.layers / "1500").mkdir()
    before = UidClaim(1000, 1999, str(moved.root), has_claims, place)
    await before.acquire(wait_s=0)
    before.release()
    for begin, end in ((1000, 1099), (5000, 5999)):
        claim = UidClaim(begin, end, str(moved.root), has_claims, place)
        await claim.acquire(wait_s=0)
        with pytest.raises(ConfigError, match="has machines or files of 1000-1999"):
            await UidClaim(1400, 1600, "/other", has_claims, place).acquire(wait_s=0)
        claim.release()
    (moved.layers / "1500").rmdir()
    (moved.layers / "5002").mkdir()
    other = UidClaim(1400, 1600, "/other", has_claims, place)
    await other.acquire(wait_s=0)
    other.release()


async def test_a_predecessor_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    place = tmp_path / "claims"
    first, second = (UidClaim(1000, 1999, "/d", unused, place) for _ in range(2))
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    await asyncio.wait_for(waiting, 5)
    second.release()


async def test_a_claim_that_cannot_be_noted_is_told(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be used"):
        await UidClaim(1000, 1999, "/d", unused, tmp_path / "claims").acquire(wait_s=0)


def test_numbers_of_this_hosts_users_are_found(tmp_path: Path) -> None:
    assert "user root is 0" in users.others_between(0, 10, tmp_path)
    assert users.others_between(3_000_000_000, 3_000_000_001, tmp_path) == ""
    (tmp_path / "subuid").write_text("odd\nann:231072:65536\nbob:x:y\n")
    found = users.others_between(250000, 259999, tmp_path)
    assert found == f"ann has 231072-296607 in {tmp_path / 'subuid'}"
    assert users.others_between(296608, 296999, tmp_path) == ""
    assert users.others_between(231000, 231072, tmp_path)


def test_whoever_is_refused_numbers_is_named_others_that_nobody_has(
    tmp_path: Path,
) -> None:
    """Debian's useradd gives each ordinary user 65536 more."""
    lines = [f"u{n}:{100000 + n * 65536}:65536\n" for n in range(3)]
    (tmp_path / "subuid").write_text("".join(lines))
    assert users.others_between(250000, 259999, tmp_path)
    assert '"1879048192-1879058191"' in users.way_out(10000, tmp_path)
    (tmp_path / "subgid").write_text("nspawn:1879000000:60000\nnext:1879060500:1\n")
    found = '"1879060501-1879070500"'
    assert found in users.way_out(10000, tmp_path)
    assert '"1879060000-1879060499"' in users.way_out(500, tmp_path)
    assert users.others_between(1879060501, 1879070500, tmp_path) == ""
    (tmp_path / "subgid").write_text("all:1000:4000000000\n")
    assert "such as" not in users.way_out(10000, tmp_path)


def test_numbers_that_somebody_else_has_by_now_are_kept_but_not_given() -> None:
    taken = ConfigError("machine_uids 250000-250004: ann has 231072-296607")
    pool = UserPool(MachineUids(250000, 250004), taken)
    pool.adopt("s1", 250002)
    assert pool.take("s1", set()) == 250002
    with pytest.raises(Refused, match="ann has 231072") as refused:
        pool.take("s2", set())
    assert refused.value.reason == "MachineUidsTaken"
    assert pool.held() == {250002}


def process(proc: Path, pid: int, stat: str, uid: int) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(stat)
    os.chown(folder, uid, -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_who_has_ended_runs_no_more(tmp_path: Path) -> None:
    process(tmp_path, 11, "11 (qemu) S 1", 250002)
    process(tmp_path, 12, "12 (a) Z) R 1", 250002)
    process(tmp_path, 13, "13 (qemu) Z 1", 250002)
    process(tmp_path, 14, "14 (qemu) S 1", 250003)
    (tmp_path / "self").mkdir()
    os.chown(tmp_path / "self", 250002, -1)
    assert sorted(users.processes_of(250002, tmp_path)) == [11, 12]
