"""Programs that turn an image into a disk and are killed by somebody else: that says nothing about the image."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.test_storage import on_disk
from tests.fakes.oci_layout import Layout, directory, entry, layer
from tests.fakes.settings import image_rules
from vmdriver.errors import ImageError
from vmdriver.host import process
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.oci.image_service import ImageService

SCRIPT = """#!/bin/sh
case "$*" in
*{what}*)
    printf x >> {count}
    if [ "$(wc -c < {count})" -le {times} ]; then
        for last; do before=$disk disk=$last; done
        case "{what}" in
        unpack) mkdir -p "$last/rootfs"; echo half > "$last/rootfs/half"; echo half > "$last/half" ;;
        lazy_journal) echo half > "$before" ;;
        esac
        kill -{signal} $$
    fi ;;
esac
exec {real} "$@"
"""
PROGRAMS = {"unpack": "prlimit", "scan": "prlimit", "lazy_journal": "prlimit"}
"""A word of its command line -> what is run first."""


class Killer:
    """Has a program killed so often when it has begun."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._bin = place / "count", place / "bin"
        self._bin.mkdir()
        path = f"{self._bin}:{process.ENVIRONMENT['PATH']}"
        monkeypatch.setitem(process.ENVIRONMENT, "PATH", path)

    def kill(self, what: str, times: int, signal: str = "KILL") -> None:
        name = PROGRAMS[what]
        text = SCRIPT.format(
            what=what,
            count=self.count,
            times=times,
            signal=signal,
            real=shutil.which(name, path=os.defpath + ":/usr/sbin:/sbin"),
        )
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(tmp_path, monkeypatch)


@pytest.fixture
def image(tmp_path: Path) -> str:
    layout = Layout(tmp_path / "images" / "layout")
    layout.image("tiny", [layer(directory("etc"), entry("etc/hello", "hello\n"))])
    return f"oci:{layout.path}:tiny"


@pytest.fixture
async def store(tmp_path: Path, image: str) -> AsyncIterator[ImageService]:
    threads = Threads("images", 4)
    policy = image_rules((), (tmp_path / "images",), refresh_s=0)
    store = ImageService(tmp_path / "store", threads, policy, numbers=UserNamespace())
    await store.open()
    yield store
    await store.close()
    assert not list((tmp_path / "store").glob(".work-*")), "nothing half-made stays"
    threads.close()


@pytest.mark.parametrize("what", list(PROGRAMS))
@pytest.mark.parametrize("signal", ["KILL", "TERM"])
async def test_one_that_is_killed_is_begun_once_more_and_from_nothing(
    what: str, signal: str, store: ImageService, image: str, killer: Killer
) -> None:
    killer.kill(what, 1, signal)
    disk = await store.prepare(image, "s1", lambda _: None)
    assert killer.count.read_text() == "xx"
    assert "hello" in on_disk(Path(disk.path), "cat /etc/hello")
    assert "half" not in on_disk(Path(disk.path), "ls -p /")


@pytest.mark.parametrize("what", list(PROGRAMS))
async def test_one_that_is_killed_twice_is_not_said_to_be_the_images_fault(
    what: str, store: ImageService, image: str, killer: Killer
) -> None:
    killer.kill(what, 9)
    with pytest.raises(ImageError, match=r"was killed \(SIGKILL\) twice") as failed:
        await store.prepare(image, "s1", lambda _: None)
    assert killer.count.read_text() == "xx", "once more, not for ever"
    assert failed.value.reason == "ProgramKilled"
    assert "push it again" not in failed.value.text()
    assert "prlimit" not in failed.value.message
    killer.kill(what, 0)
    await store.prepare(image, "s1", lambda _: None)


@pytest.mark.parametrize("signal", ["SEGV", "XFSZ"])
async def test_one_that_ends_by_a_fault_of_its_own_is_not_begun_again(
    signal: str, store: ImageService, image: str, killer: Killer
) -> None:
    killer.kill("unpack", 9, signal)
    with pytest.raises(ImageError, match="ended with status -") as failed:
        await store.prepare(image, "s1", lambda _: None)
    assert killer.count.read_text() == "x"
    assert "push it again" in failed.value.resolution
