"""Access lists, as the kernel obeys them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmdriver.errors import Refused
from vmdriver.host.users import access, access_list
from vmdriver.hypervisor.kvm import access as kvm_access
from vmdriver.hypervisor.wall import own_folders

USER, GROUP = 240102, 240100


@pytest.fixture
def file() -> Iterator[Path]:
    """Where other users get to: pytest's own folders are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="vmdriver-access-"))
    folder.chmod(0o711)
    path = folder / "file"
    path.touch(mode=0o600)
    yield path
    shutil.rmtree(folder)


async def can(path: Path, uid: int, gid: int = 65534) -> str:
    for rights, wanted in (("rw", "use"), ("r", "read")):
        if not await access.denied([str(path)], wanted, uid, gid):  # type: ignore[arg-type]
            return rights
    return ""


async def test_a_user_is_let_in_and_out_again(file: Path) -> None:
    before = file.stat().st_mode
    for _ in range(2):
        access_list.allow(file, "r", uid=USER)
    assert [await can(file, u) for u in (USER, USER + 1)] == ["r", ""]
    access_list.allow(file, "rw", uid=USER)
    access_list.allow(file, "r", uid=USER + 1)
    assert [await can(file, u) for u in (USER, USER + 1)] == ["rw", "r"]
    assert access_list.users(file) == {USER, USER + 1}
    for _ in range(2):
        access_list.forbid(file, USER)
    assert [await can(file, u) for u in (USER, USER + 1)] == ["", "r"]
    access_list.drop(file)
    file.chmod(0o600)
    assert not access_list.is_there(file)
    assert file.stat().st_mode == before
    assert await can(file, USER + 1) == ""


async def test_the_last_entry_leaves_no_list(file: Path) -> None:
    file.chmod(0o640)
    access_list.allow(file, "rw", uid=USER)
    access_list.forbid(file, USER)
    assert not access_list.is_there(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


async def test_what_a_chmod_took_is_given_again(file: Path) -> None:
    access_list.allow(file, "r", uid=USER)
    file.chmod(0o600)
    assert await can(file, USER) == ""
    access_list.allow(file, "r", uid=USER)
    assert await can(file, USER) == "r"


async def test_those_who_are_let_in_at_once_are_all_let_in(file: Path) -> None:
    users = range(USER, USER + 64)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uid: access_list.allow(file, "r", uid=uid), users))
    assert access_list.users(file) == set(users)


async def test_a_link_is_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(OSError, match="link"):
        access_list.allow(link, "rw", uid=USER)
    assert access_list.users(link) == set()
    assert access_list.users(file) == set()


async def test_machines_may_use_kvm_and_others_may_not(file: Path) -> None:
    for _ in range(2):
        kvm_access.let_in(GROUP, str(file))
    assert [await can(file, USER, GROUP), await can(file, USER)] == ["rw", ""]
    file.chmod(0o600)  # as udev does
    kvm_access.let_in(GROUP, str(file))
    assert await can(file, USER, GROUP) == "rw"


async def test_a_device_that_everybody_may_use_stays_as_it_is(file: Path) -> None:
    file.chmod(0o666)
    kvm_access.let_in(GROUP, str(file))
    assert not access_list.is_there(file)


def test_kvm_that_machines_cannot_be_let_use_refuses_the_start(file: Path) -> None:
    with pytest.raises(Refused, match="cannot be let use") as refused:
        kvm_access.let_in(GROUP, str(file.with_name("none")))
    assert refused.value.reason == "IsolationUnavailable"


OF_A_MACHINE = f"""<domain>
  <seclabel type="static" model="dac"><label>+{USER}:+{GROUP}</label></seclabel>
</domain>"""


async def test_machines_come_to_their_folder_where_a_daemon_keeps_those_above_to_itself(
    file: Path,
) -> None:
    """Debian 13's package has /var/lib/libvirt/qemu 0750; libvirt's key for a machine is below."""
    folder, key = file.parent / "qemu", file.parent / "qemu" / "domain-1-m" / "key"
    key.parent.mkdir(parents=True)
    key.touch()
    folder.chmod(0o750)
    os.chown(folder, 64055, 64055)
    assert await can(key, USER, GROUP) == ""
    for _ in range(2):
        own_folders.let_through("qemu:///system", OF_A_MACHINE, folder)
    assert [await can(key, USER, GROUP), await can(key, USER)] == ["r", ""]
    assert await access.denied([str(folder)], "read", USER, GROUP), (
        "they do not list it"
    )
    folder.chmod(0o750)  # as an upgrade of the package does
    own_folders.let_through("qemu:///system", OF_A_MACHINE, folder)
    assert await can(key, USER, GROUP) == "r"


def test_a_folder_that_is_open_or_the_machines_own_stays_as_it_is(file: Path) -> None:
    folder = file.parent
    own_folders.let_through("qemu:///system", OF_A_MACHINE, folder)
    folder.chmod(0o700)
    os.chown(folder, USER, GROUP)
    own_folders.let_through("qemu:///system", OF_A_MACHINE, folder)
    assert not access_list.is_there(folder)


def test_a_folder_that_machines_cannot_be_let_into_refuses_the_start(
    file: Path,
) -> None:
    gone = file.with_name("none")
    with pytest.raises(Refused, match="cannot be let into") as refused:
        own_folders.let_through("qemu:///system", OF_A_MACHINE, gone)
    assert refused.value.reason == "IsolationUnavailable"
    own_folders.let_through("test:///default", OF_A_MACHINE)
