"""`vmdriver volume`, through the socket of a driver that runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.service import served
from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.cli.main import main
from vmdriver.errors import Refused
from vmdriver.model.volume import volume_id

DATA = volume_id("", "data")
MIB = 2**20


class Commands:
    def __init__(
        self, driver: FakeDriver, socket: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.driver, self.socket, self._capsys = driver, socket, capsys
        self.err = ""

    async def run(self, *words: str, of: str = "volume", code: int = 0) -> str:
        """What it says on its output."""
        found = await asyncio.to_thread(main, [of, *words, *self.options()])
        out, self.err = self._capsys.readouterr()
        assert found == code, out + self.err
        return out

    def options(self) -> list[str]:
        """Of whoever speaks to this driver."""
        config = self.socket.with_name("config.toml")
        config.write_text("")
        return ["--config", str(config), "--admin-socket", str(self.socket)]

    async def json(self, *words: str) -> Any:
        return json.loads(await self.run(*words, "--json"))


@pytest.fixture
async def commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Commands]:
    async with served(tmp_path) as found:
        yield Commands(found.driver, found.socket.with_name("admin.sock"), capsys)


async def test_volumes_are_made_listed_grown_and_removed(commands: Commands) -> None:
    assert await commands.json("ls") == []
    made = await commands.json("create", "data", "--size-mib", "64")
    assert (made["name"], made["size_mib"], made["sandboxes"]) == ("data", 64, [])
    await commands.run("create", "data", "--size-mib", "32", "--workspace", "w")
    grown = await commands.json("grow", "data", "--size-mib", "128")
    assert grown["size_mib"] == 128
    found = await commands.json("ls")
    shown = [(each["workspace"], each["name"], each["size_mib"]) for each in found]
    assert shown == [("", "data", 128), ("w", "data", 32)]
    config = {"volumes": [{"name": "data", "mount": "/data"}]}
    await commands.driver.manager.create(spec(driver_config=config), None)
    await commands.driver.settled()
    table = await commands.run("ls")
    assert "128 MiB" in table
    assert "s1" in table
    for words in (("rm", "data"), ("grow", "data", "--size-mib", "256")):
        await commands.run(*words, code=2)
        assert "attached to sandbox s1" in commands.err
        assert "stop or delete that first" in commands.err, "and the way out"
    await commands.driver.manager.delete("s1", "")
    await commands.run("rm", "data")
    await commands.run("rm", "data", "--workspace", "w")
    assert await commands.json("ls") == []
    await commands.run("rm", "data", code=2)
    assert "no volume 'data'" in commands.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("create", "../x", "--size-mib", "64"), "not a volume's name"),
        (("create", "x", "--size-mib", "1"), "not within"),
        (("create", "x", "--size-mib", "60000000"), "VolumeQuota|max_workspace"),
    ],
)
async def test_what_cannot_be_made_is_said(
    commands: Commands, words: tuple[str, ...], why: str
) -> None:
    await commands.run(*words, code=2)
    assert any(part in commands.err for part in why.split("|"))


async def test_a_volume_goes_to_a_file_and_comes_back(
    commands: Commands, tmp_path: Path
) -> None:
    there, source = commands.driver.world.volumes, tmp_path / "source.img"
    with source.open("wb") as file:
        file.truncate(32 * MIB)
        for at, data in (
            (0, b"first"),
            (5 * MIB + 7, b"x" * MIB),
            (32 * MIB - 4, b"last"),
        ):
            os.pwrite(file.fileno(), data, at)
    said = await commands.run("import", "data", str(source), "--json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert lines[-1]["size_mib"] == 32
    assert lines[-2] == {"done_bytes": 32 * MIB, "total_bytes": 32 * MIB}
    stored = sum(map(len, there.content[DATA].values()))
    assert stored <= 5 * MIB, "holes are not sent"
    target = tmp_path / "target.img"
    await commands.run("export", "data", str(target))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.stat().st_blocks * 512 < 8 * MIB
    await commands.run("export", "data", str(target), code=2)
    assert f"{target} is there already" in commands.err
    assert sorted(p.name for p in tmp_path.glob("*.img*")) == [
        *("source.img", "target.img")
    ]
    await commands.run("import", "data", str(source), code=2)
    assert "volume 'data' exists" in commands.err


async def test_an_export_to_a_disk_that_takes_it_in_parts_is_whole(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, write = os.urandom(MIB), os.pwrite
    await commands.driver.manager.volume_jobs.create("", "data", 32)
    commands.driver.world.volumes.content[DATA] = {3 * MIB: content}
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:5000], at))
    target = tmp_path / "target.img"
    await commands.run("export", "data", str(target))
    assert target.read_bytes()[3 * MIB : 4 * MIB] == content


async def test_of_two_exports_to_one_file_each_is_whole_and_one_is_refused(
    commands: Commands, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    source.write_bytes(os.urandom(2**20) * 32)
    foreign = tmp_path / ".target.img.part"
    foreign.write_text("somebody's own")
    await commands.run("import", "data", str(source))
    both = [
        asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vmdriver", "volume", "export", "data"),
            *(str(target), *commands.options()),
            stderr=asyncio.subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    codes = [await program.wait() for program in await asyncio.gather(*both)]
    assert sorted(codes) == [0, 2]
    assert target.read_bytes() == source.read_bytes()
    assert foreign.read_text() == "somebody's own"
    left = {"source.img", "target.img", ".target.img.part"}
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == left


async def test_an_image_that_becomes_shorter_meanwhile_is_told_of(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.img"
    source.write_bytes(b"x" * 2**25)
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    await commands.run("import", "data", str(source), code=2)
    assert "became shorter" in commands.err
    monkeypatch.undo()
    assert await commands.json("ls") == []


async def test_an_image_that_cannot_be_read_is_no_hole(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.img"
    source.write_bytes(b"x" * 2**25)

    def broken(*_: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "lseek", broken)
    await commands.run("import", "data", str(source), code=2)
    assert "Input/output error" in commands.err
    monkeypatch.undo()
    assert await commands.json("ls") == []


async def test_what_is_no_image_is_not_imported(
    commands: Commands, tmp_path: Path
) -> None:
    for name in ("empty", "folder", "missing"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        if name == "empty":
            path.touch()
        await commands.run("import", "data", str(path), code=2)
    assert await commands.json("ls") == []
    await commands.run("export", "nothing", str(tmp_path / "out"), code=2)
    assert not list(tmp_path.glob("*out*"))


async def test_a_client_that_goes_away_imports_nothing(commands: Commands) -> None:
    there, ended = commands.driver.world.volumes, threading.Event()
    wanted = pb.CreateVolumeRequest(name="data", size_mib=32)
    piece = pb.VolumePiece(offset=0, data=b"a")

    async def requests() -> AsyncIterator[pb.ImportVolumePiece]:
        yield pb.ImportVolumePiece(volume=wanted)
        yield pb.ImportVolumePiece(piece=piece)
        while not ended.is_set():
            await asyncio.sleep(0.01)

    async with grpc.aio.insecure_channel(f"unix:{commands.socket}") as channel:
        call = pb_grpc.VolumesStub(channel).ImportVolume(requests())
        async with asyncio.timeout(5):
            while not there.beside.get(DATA):
                await asyncio.sleep(0.01)
        call.cancel()
        async with asyncio.timeout(5):
            while there.beside:
                await asyncio.sleep(0.01)
        ended.set()
    assert not there.notes
    await commands.run("create", "data", "--size-mib", "32")


async def test_a_volume_is_free_when_who_exports_it_goes_away(
    commands: Commands,
) -> None:
    jobs, there = commands.driver.manager.volume_jobs, commands.driver.world.volumes
    await jobs.create("", "data", 64)
    there.content[DATA] = {at * MIB: b"a" * MIB for at in range(64)}
    async with grpc.aio.insecure_channel(f"unix:{commands.socket}") as channel:
        wanted = pb.ExportVolumeRequest(name="data")
        call = pb_grpc.VolumesStub(channel).ExportVolume(wanted)
        await call.read()
        with pytest.raises(Refused, match="is being exported"):
            await jobs.remove("", "data")
        call.cancel()
        async with asyncio.timeout(5):
            while await jobs.all():
                with contextlib.suppress(Refused):
                    await jobs.remove("", "data")
                await asyncio.sleep(0.01)


async def test_content_without_an_end_is_not_taken(commands: Commands) -> None:
    wanted = pb.CreateVolumeRequest(name="data", size_mib=32)
    requests = iter([pb.ImportVolumePiece(volume=wanted)])
    async with grpc.aio.insecure_channel(f"unix:{commands.socket}") as channel:
        stub = pb_grpc.VolumesStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ImportVolume(requests)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not commands.driver.world.volumes.beside


async def test_a_snapshot_has_volumes_in_it_that_go_to_files(
    commands: Commands, tmp_path: Path
) -> None:
    driver, there = commands.driver, commands.driver.world.volumes
    config = {"volumes": [{"name": "data", "mount": "/data", "size_mib": 64}]}
    await driver.manager.create(spec(driver_config=config), None)
    await driver.settled()
    there.content[DATA] = {0: b"before", 2**25: b"that"}
    create = "create", "s1", "a"
    said = await commands.run(*create, "--volumes", of="snapshot", code=2)
    assert not said
    assert "--disk-only" in commands.err
    await commands.run(*create, "--disk-only", "--volumes", of="snapshot")
    there.content[DATA] = {0: b"after"}
    (entry,) = json.loads(await commands.run("ls", "s1", "--json", of="snapshot"))
    wanted = {"name": "data", "size_mib": 64, "stored_bytes": len("beforethat")}
    assert entry["volumes"] == [wanted]
    assert "volumes" in await commands.run("ls", "s1", of="snapshot")
    assert "data, 64 MiB" in await commands.run("show", "s1", "a", of="snapshot")
    target = tmp_path / "target.img"
    out = "export", "data", str(target), "--snapshot"
    await commands.run(*out, "s1/b", code=2)
    assert "has no snapshot 'b'" in commands.err
    await commands.run(*out, "nonsense", code=2)
    assert not target.exists()
    said = await commands.run(*out, "s1/a", "--json")
    assert json.loads(said.splitlines()[-1])["total_bytes"] == 64 * MIB
    with target.open("rb") as file:
        assert file.read(7) == b"before\0"
        file.seek(2**25)
        assert file.read(5) == b"that\0"
    assert target.stat().st_size == 64 * MIB
    await commands.run("restore", "s1", "a", "--volumes", of="snapshot")
    assert there.content[DATA] == {0: b"before", 2**25: b"that"}
    await commands.run("rm", "s1", "a", of="snapshot")
    assert not [path for path in driver.world.files if path.endswith(".raw")]
