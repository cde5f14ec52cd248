"""Supervisors' disks: several first creates at once, makers that are cut off, sources that change meanwhile. With the real programs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_storage import compile_program, on_disk
from vmdriver.errors import Refused
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs import supervisors
from vmdriver.storage.programs.program_bundle import Bundle
from vmdriver.storage.programs.supervisors import SupervisorDisks


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


@pytest.fixture
def disks(layout: Layout) -> Iterator[SupervisorDisks]:
    threads = Threads("supervisors", 4)
    yield SupervisorDisks(layout, threads, numbers=UserNamespace())
    threads.close()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return compile_program(tmp_path / "program")


def check(disk: Path, layout: Layout) -> None:
    """A sound file system with everything in it, and nothing beside it."""
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    assert "/openshell-sandbox/" in on_disk(disk, "ls -p /")
    assert "/libc.so.6/" in on_disk(disk, "ls -p /lib")
    assert sorted(layout.supervisors.iterdir()) == [disk, disk.with_suffix(".used")]


async def test_several_first_creates_at_once_all_get_the_same_disk(
    disks: SupervisorDisks, layout: Layout, program: Path
) -> None:
    found = await asyncio.gather(*(disks.disk(program) for _ in range(8)))
    assert len(set(found)) == 1
    check(found[0], layout)


async def test_one_that_gives_up_harms_none_of_those_that_wait(
    disks: SupervisorDisks, layout: Layout, program: Path
) -> None:
    tasks = [asyncio.ensure_future(disks.disk(program)) for _ in range(4)]
    while not list(layout.supervisors.glob(".*")):  # the first is at it
        await asyncio.sleep(0.001)
    tasks[0].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert len(set(done[1:])) == 1
    check(done[1], layout)


async def test_two_makers_that_do_not_know_each_other_do_not_meet(
    layout: Layout, program: Path
) -> None:
    """As when a killed driver's thread and programs go on beside the next driver."""
    thread_pools = [Threads("a", 2), Threads("b", 2)]
    stores = [
        SupervisorDisks(layout, threads, numbers=UserNamespace())
        for threads in thread_pools
    ]
    found = await asyncio.gather(*(s.disk(program) for s in stores))
    assert found[0] == found[1]
    check(found[0], layout)
    for threads in thread_pools:
        threads.close()


async def test_a_source_that_changes_meanwhile_is_not_published_under_the_old_digest(
    disks: SupervisorDisks,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = await disks.disk(program)
    whole.unlink()
    real, text = supervisors._lay_out, "int main(void) { return 3; }"

    def changed(bundle: Bundle, tree: Path) -> Bundle:
        compile_program(program, text=text)
        return real(bundle, tree)

    monkeypatch.setattr(supervisors, "_lay_out", changed)
    other = await disks.disk(program)
    assert other != whole
    assert not whole.exists(), "it is not what that digest says"
    monkeypatch.undo()
    again = await disks.disk(shutil.copyfile(program, tmp_path / "same"))
    assert again == other


async def test_what_a_killed_driver_had_half_made_is_no_hindrance(
    disks: SupervisorDisks, layout: Layout, program: Path
) -> None:
    (layout.supervisors / f".{'0' * 32}.img.1.tree").mkdir()
    (layout.supervisors / ".work-1" / "tree").mkdir(parents=True)
    disk = await disks.disk(program)
    assert "/libc.so.6/" in on_disk(disk, "ls -p /lib")


WHO_RAN = "void __attribute__((constructor)) ran(void) { volatile int *nowhere = 0; *nowhere = 1; }"
"""Of a library that must not be loaded."""
USES_ALL = """
#include <dlfcn.h>
#include <pwd.h>
#include <stdio.h>
int own(void);
int main(void) {
    getpwnam("nobody-of-that-name");
    if (dlopen("libplugin.so.1", RTLD_NOW)) return 2;
    FILE *found = fopen("/etc/passwd", "r");
    return found ? own() : 4;
}
"""


def guest_with(disk: Path, image: Path) -> Path:
    """A guest's root directory: an image's, with the supervisor's disk where it is mounted."""
    place = image / "opt" / "openshell" / "bin"
    place.mkdir(parents=True)
    on_disk(disk, f'rdump / "{place}"')
    (image / "sys").mkdir()
    return image


def hostile_image(path: Path, *, preload: bool = False) -> Path:
    """Which has a library of its own for every name that a program may ask for, in every place."""
    evil = compile_program(path.with_name("evil.so"), "-shared", text=WHO_RAN)
    names = ("libc.so.6", "libown.so.1", "libdeep.so.1", "libplugin.so.1", "evil.so")
    places = ("lib", "lib64", "usr/lib", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "image/lib")  # fmt: skip
    for place in places:
        (path / place).mkdir(parents=True, exist_ok=True)
        for name in (*names, "libnss_evil.so.2"):
            shutil.copyfile(evil, path / place / name)
    (path / "etc" / "ld.so.conf.d").mkdir(parents=True)
    (path / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (path / "etc" / "nsswitch.conf").write_text("passwd: evil files\nhosts: evil\n")
    (path / "etc" / "ld.so.conf").write_text("/image/lib\n")
    subprocess.run(["ldconfig", "-r", path], check=True, capture_output=True)
    assert (path / "etc" / "ld.so.cache").exists()
    if preload:
        (path / "etc" / "ld.so.preload").write_text("/lib/evil.so\n")
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot")
@pytest.mark.parametrize("preload", [False, True])
async def test_a_dynamic_supervisor_loads_nothing_of_the_image_that_it_runs_in(
    disks: SupervisorDisks, tmp_path: Path, preload: bool
) -> None:
    root = tmp_path / "root"
    folder = root / "usr" / "lib"
    folder.mkdir(parents=True)
    for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"):
        shutil.copy(path, folder)
    (root / "lib64").symlink_to("usr/lib")
    deep, own = folder / "libdeep.so.1", folder / "libown.so.1"
    compile_program(deep, "-shared", "-Wl,-soname,libdeep.so.1", text="int deep(void) { return 40; }")  # fmt: skip
    options = ["-shared", "-Wl,-soname,libown.so.1", "-Wl,-rpath,/image/lib", "-Wl,--enable-new-dtags"]  # fmt: skip
    text = "int deep(void); int own(void) { return deep() + 2; }"
    compile_program(own, *options, str(deep), text=text)
    program = compile_program(root / "program", "-Wl,--allow-shlib-undefined", str(own), text=USES_ALL)  # fmt: skip
    image = hostile_image(tmp_path / "image", preload=preload)
    guest = guest_with(await disks.disk(program, root), image)
    place = "/opt/openshell/bin/openshell-sandbox"
    done = subprocess.run(["chroot", guest, place], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (42, b"")
    # It is a hostile image indeed: a program that was left as it is obeys it.
    shutil.copy(program, guest / "asis")
    shutil.copy("/lib64/ld-linux-x86-64.so.2", guest / "lib64")
    asis = subprocess.run(["chroot", guest, "/asis"], check=False, capture_output=True)
    assert asis.returncode != 42


async def test_a_loader_that_nobody_knows_is_refused(
    disks: SupervisorDisks, tmp_path: Path
) -> None:
    folder = tmp_path / "root" / "lib64"
    folder.mkdir(parents=True)
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", folder)
    (folder / "ld-linux-x86-64.so.2").write_bytes(b"\x7fELF of somebody's own")
    with pytest.raises(Refused, match="cannot be kept from loading"):
        await disks.disk(compile_program(folder.parent / "program"), folder.parent)
