"""The demo, when its driver does not live."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.demo.demo import Wanted, demo
from vmdriver.demo.driver import SOCKET_FOLDER, DriverDied, Place, driver
from vmdriver.demo.gateway import Gateway
from vmdriver.demo.life import life, say, shortened
from vmdriver.demo.undisturbed import alone, ended_once
from vmdriver.errors import Unavailable

DIES = """
import sys, time
print("a first line", flush=True)
time.sleep(0.5)
sys.exit("no space left, says the driver")
"""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.mark.parametrize("while_it", ["waits for an answer", "waits for an event"])
def test_a_driver_that_dies_is_noticed_at_once_and_its_last_lines_are_shown(
    while_it: str, gateway: Gateway, tmp_path: Path
) -> None:
    place = Place(tmp_path / "state", tmp_path, gateway.url)
    begun = time.monotonic()
    with (
        pytest.raises(DriverDied, match=r"status 1(.|\n)*no space left") as died,
        driver(place, [sys.executable, "-c", DIES]) as socket,
    ):
        if while_it == "waits for an event":
            threading.Event().wait(25)
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            stub = pb_grpc.ComputeDriverStub(channel)
            life(stub, gateway, "image", place.state / "admin.sock")
    assert "a first line" in str(died.value)
    assert time.monotonic() - begun < 20, "no time-out was waited for"


def test_a_driver_that_is_ended_by_the_demo_has_not_died(
    gateway: Gateway, tmp_path: Path
) -> None:
    place = Place(tmp_path / "state", tmp_path, gateway.url)
    with driver(place, [sys.executable, "-c", "import time; time.sleep(600)"]):
        pass


def test_a_second_demo_leaves_the_first_ones_folders_alone(tmp_path: Path) -> None:
    work = tmp_path / "demo"
    image = work / "image" / "index.json"
    image.parent.mkdir(parents=True)
    image.touch()
    with alone(SOCKET_FOLDER):
        (SOCKET_FOLDER / "driver.sock").touch()
        with pytest.raises(Unavailable, match="another demo runs"):
            demo(Wanted(work))
        assert (SOCKET_FOLDER / "driver.sock").exists()
    assert image.exists()
    assert not SOCKET_FOLDER.exists()


def test_a_killed_demos_folder_is_the_next_ones(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "driver.sock").touch()
    with alone(place):
        pass
    assert not place.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_end_cleans_up_and_is_not_cut_short(number: int) -> None:
    cleaned = False
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ended_once():
        try:
            os.kill(os.getpid(), number)
            threading.Event().wait(5)
        finally:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
            cleaned = True
    assert cleaned
    assert signal.getsignal(number) == before


def test_who_is_told_to_end_once_its_driver_is_begun_ends_that(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(_text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmdriver.demo.driver.say", told)
    place = Place(tmp_path / "state", tmp_path, gateway.url)
    text = f"import time; {str(tmp_path)!r}; time.sleep(600)"
    with (
        pytest.raises(KeyboardInterrupt),
        driver(place, [sys.executable, "-c", text]),
    ):
        raise AssertionError("it was told to end before")
    alive = [path for path in Path("/proc").glob("[0-9]*") if _is(path, tmp_path)]
    assert alive == []


def _is(process: Path, folder: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"serve" in words and str(folder / "state").encode() in words


def test_lines_of_several_threads_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event and the demo's own step come at one moment: both were on one line."""
    written: list[str] = []

    class Screen:
        def write(self, text: str) -> None:
            written.append(text)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Screen())
    say("first")
    say("second")
    lines = [text for text in written if text]
    assert len(lines) == 2
    assert all(line.endswith("\n") for line in lines)


def test_what_is_left_out_of_a_message_is_seen() -> None:
    assert shortened("short") == "short"
    long = shortened("x" * 400)
    assert len(long) == 100
    assert long.endswith("x…")
