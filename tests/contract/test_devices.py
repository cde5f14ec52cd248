"""PCI functions through the kernel's files, on a folder that behaves like them: no real device was ever there."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from tests.fakes.sysfs import FakeSysfs
from vmdriver.devices.files import Files
from vmdriver.devices.host_devices import SysfsDevices
from vmdriver.errors import HostError, TimedOut
from vmdriver.model.devices import (
    VFIO,
    DevicePicture,
    PassedFunction,
    WantedDevices,
    chosen,
    obstacle,
)
from vmdriver.model.plan import MachineUser

GPU, AUDIO, DISK, NIC = "0000:3b:00.0", "0000:3b:00.1", "0000:41:00.0", "0000:42:00.0"
ALLOWED = (GPU, AUDIO, DISK, NIC)
USER = MachineUser(uid=250002, gid=250000)
DEVICES = "sys/bus/pci/devices"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A GPU with its sound in one group, a disk controller and a network card in groups of their own."""
    host = FakeSysfs(tmp_path)
    host.add(GPU)
    host.add(AUDIO, 0x040300, driver="snd_hda_intel", resettable=False, bars_mib=1)
    host.add(DISK, 0x010802, group=8, driver="nvme")
    host.add(NIC, 0x020000, group=9, driver="mlx5_core")
    return host


@pytest.fixture
def devices(sysfs: FakeSysfs) -> SysfsDevices:
    return SysfsDevices(sysfs)


async def seen(devices: SysfsDevices) -> DevicePicture:
    return await devices.look(ALLOWED)


async def of(devices: SysfsDevices, *addresses: str) -> tuple[PassedFunction, ...]:
    return chosen(WantedDevices(addresses), await seen(devices), ALLOWED, ())


async def why_not(devices: SysfsDevices, address: str) -> tuple[str, str]:
    found = obstacle(address, await seen(devices), ALLOWED)
    return (found.reason, found.message) if found else ("", "")


def test_the_kernels_files_are_read_written_and_owned_as_they_are(
    tmp_path: Path,
) -> None:
    """Without the fake: what is missing says nothing and comes not to be, and who has a node open is seen."""
    files, node = Files(tmp_path), tmp_path / "dev/vfio/7"
    node.parent.mkdir(parents=True)
    node.write_text("before\n")
    assert (files.read("no"), files.names("no"), files.last("no")) == ("", [], "")
    with pytest.raises(FileNotFoundError):
        files.write("sys/bus/pci/drivers/vfio-pci/bind", GPU)
    assert not (tmp_path / "sys").exists()
    files.write("dev/vfio/7", GPU)
    assert files.read("dev/vfio/7") == GPU
    (tmp_path / "driver").symlink_to("../drivers/nvidia")
    assert (files.there("driver"), files.last("driver")) == (True, "nvidia")
    node.chmod(0o666)
    files.own("dev/vfio/7", os.getuid(), os.getgid())
    assert stat.S_IMODE(node.stat().st_mode) == 0o600
    files.try_open("dev/vfio/7")
    assert files.open_by_others(["dev/vfio/7", "dev/vfio/8"]) == set()
    with node.open() as held:
        other = subprocess.Popen(
            ["sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=[held.fileno()],
        )  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        assert files.open_by_others(["dev/vfio/7"]) == {"dev/vfio/7"}
        other.communicate()


async def test_what_is_there_is_seen_with_all_of_its_group(
    devices: SysfsDevices,
) -> None:
    found = await devices.look((GPU,))
    assert found.iommu
    assert found.vfio
    assert set(found.functions) == {GPU, AUDIO}
    gpu = found.functions[GPU]
    assert gpu.is_gpu
    assert (gpu.driver, gpu.override, gpu.group) == ("nvidia", "", 7)
    assert gpu.bar_bytes == 16 * 2**20, "the ports of the second address are no memory"
    assert gpu.neighbours == (AUDIO,)
    assert await why_not(devices, GPU) == ("", "")


async def test_it_is_given_to_one_user_and_comes_back_as_it_was(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    before = sysfs.drivers(), sysfs.overrides()
    functions = await of(devices, GPU)
    assert [f.given for f in functions] == [True, False]
    await devices.give(functions, USER)
    assert sysfs.drivers()[GPU] == sysfs.drivers()[AUDIO] == VFIO
    assert sysfs.drivers()[DISK] == "nvme"
    assert sysfs.owners == {"dev/vfio/7": (USER.uid, 0)}
    for _ in range(2):
        await devices.take_back(functions)
        assert (sysfs.drivers(), sysfs.overrides()) == before
        assert sysfs.owners == {}
    resets = [write for write in sysfs.writes if "/reset" in write]
    assert resets == [f"{DEVICES}/{GPU}/reset 1"], "once, while vfio-pci has it"


async def test_one_that_an_operator_had_bound_to_vfio_stays_there(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    address = "0000:5e:00.0"
    sysfs.add(address, group=11, driver="")
    sysfs.write(f"{DEVICES}/{address}/driver_override", VFIO)
    sysfs.write(f"sys/bus/pci/drivers/{VFIO}/bind", address)
    picture = await devices.look((address,))
    functions = chosen(WantedDevices((address,)), picture, (address,), ())
    await devices.give(functions, USER)
    await devices.take_back(functions)
    assert sysfs.drivers()[address] == VFIO
    assert sysfs.overrides()[address] == VFIO
    assert sysfs.owners["dev/vfio/11"] == (0, 0)


@pytest.mark.parametrize("at", range(20))
async def test_whatever_write_was_the_last_of_a_process_all_of_it_comes_back(
    sysfs: FakeSysfs, devices: SysfsDevices, at: int
) -> None:
    """As after SIGKILL: the rest of giving, or of taking back, does not happen, and another process takes back."""
    before = sysfs.drivers(), sysfs.overrides()
    functions = await of(devices, GPU, DISK)

    class KilledError(Exception):
        pass

    def stop() -> None:
        raise KilledError

    plain, count = sysfs.write, 0

    def write(name: str, text: str) -> None:
        nonlocal count
        if count == at:
            stop()
        count += 1
        plain(name, text)

    sysfs.write = write  # type: ignore[method-assign]
    try:
        await devices.give(functions, USER)
        await devices.take_back(functions)
    except KilledError:
        pass
    else:
        assert at >= 17, "every write is one of these"
    sysfs.write = plain  # type: ignore[method-assign]
    await SysfsDevices(sysfs).take_back(functions)
    assert (sysfs.drivers(), sysfs.overrides()) == before
    assert sysfs.owners == {}
    again = await of(devices, GPU, DISK)
    assert again == functions, "whoever comes next finds what the first one did"
    await devices.give(again, USER)


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        (f"sys/bus/pci/drivers/{VFIO}/bind", errno.EBUSY, "DeviceInUse"),
        (f"sys/bus/pci/drivers/{VFIO}/bind", errno.EINVAL, "DeviceNotBound"),
        (f"{DEVICES}/{GPU}/driver/unbind", errno.EBUSY, "DeviceInUse"),
        (f"{DEVICES}/{AUDIO}/driver_override", errno.EIO, "DeviceNotBound"),
    ],
)
async def test_one_that_cannot_be_bound_is_told_and_the_half_of_it_undone(
    sysfs: FakeSysfs, devices: SysfsDevices, file: str, code: int, reason: str
) -> None:
    before = sysfs.drivers(), sysfs.overrides()
    functions = await of(devices, GPU)
    sysfs.refused[file] = code
    with pytest.raises(HostError) as refused:
        await devices.give(functions, USER)
    assert refused.value.reason == reason
    sysfs.refused.clear()
    await devices.take_back(functions)
    assert (sysfs.drivers(), sysfs.overrides()) == before


async def test_a_group_that_another_process_has_open_does_not_change_hands(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    sysfs.elsewhere.add("dev/vfio/7")
    with pytest.raises(HostError) as refused:
        await devices.give(functions, USER)
    assert refused.value.reason == "DeviceInUse"
    assert sysfs.owners == {"dev/vfio/7": (0, 0)}


async def check_neither_had_nor_disturbed(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    """When somebody else has the GPU's group open."""
    sysfs.elsewhere.add("dev/vfio/7")
    sysfs.writes.clear()
    functions = await of(devices, GPU)
    with pytest.raises(HostError) as refused:
        await devices.give(functions, USER)
    assert refused.value.reason == "DeviceInUse"
    await devices.take_back(functions)
    assert sysfs.writes == []


async def test_one_that_another_program_has_by_vfio_is_neither_had_nor_disturbed(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    """Another driver's, for one: its guest would not outlive a reset."""
    await devices.give(await of(devices, GPU), MachineUser(uid=300000, gid=300000))
    await check_neither_had_nor_disturbed(sysfs, SysfsDevices(sysfs))
    assert sysfs.owners == {"dev/vfio/7": (300000, 0)}


async def test_a_group_that_somebody_else_has_half_bound_is_neither_had_nor_missed(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    """A program outside of us has the GPU by vfio-pci; nobody drives its sound."""
    sysfs.write(f"{DEVICES}/{AUDIO}/driver/unbind", AUDIO)
    sysfs.write(f"{DEVICES}/{GPU}/driver_override", VFIO)
    sysfs.write(f"{DEVICES}/{GPU}/driver/unbind", GPU)
    sysfs.write(f"sys/bus/pci/drivers/{VFIO}/bind", GPU)
    await check_neither_had_nor_disturbed(sysfs, devices)
    assert sysfs.owners == {"dev/vfio/7": (0, 0)}


async def test_one_that_an_operator_had_bound_to_vfio_is_not_back_while_it_is_open(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    """By the kernel's argument vfio-pci.ids, for one, which overrides nothing."""
    for address in (GPU, AUDIO):
        sysfs.write(f"{DEVICES}/{address}/driver_override", VFIO)
        sysfs.write(f"{DEVICES}/{address}/driver/unbind", address)
        sysfs.write(f"sys/bus/pci/drivers/{VFIO}/bind", address)
        sysfs.write(f"{DEVICES}/{address}/driver_override", "\n")
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    sysfs.elsewhere.add("dev/vfio/7")
    with pytest.raises(HostError) as refused:
        await devices.take_back(functions)
    assert refused.value.reason == "DeviceNotReturned"
    sysfs.elsewhere.clear()
    await devices.take_back(functions)
    assert sysfs.owners == {"dev/vfio/7": (0, 0)}
    assert sysfs.overrides()[GPU] == "(null)"


async def test_one_that_something_of_its_machine_still_has_open_is_not_pulled_away(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    sysfs.elsewhere.add("dev/vfio/7")
    with pytest.raises(HostError) as refused:
        await devices.take_back(functions)
    assert refused.value.reason == "DeviceNotReturned"
    assert sysfs.drivers()[GPU] == VFIO
    sysfs.elsewhere.clear()
    await devices.take_back(functions)
    assert sysfs.drivers()[GPU] == "nvidia"


async def test_another_device_that_has_its_address_since_a_restart_is_left_alone(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    for address in (GPU, AUDIO):
        sysfs.vanish(address)
    sysfs.add(GPU, group=8, driver="")
    sysfs.write(f"{DEVICES}/{GPU}/driver_override", VFIO)
    sysfs.write(f"sys/bus/pci/drivers/{VFIO}/bind", GPU)
    sysfs.own("dev/vfio/8", 300000, 0)
    sysfs.writes.clear()
    await devices.take_back(functions)
    assert sysfs.writes == []
    assert sysfs.owners == {"dev/vfio/8": (300000, 0)}


async def test_a_former_driver_that_does_not_know_it_any_more_keeps_nobody_waiting(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    sysfs.refused["sys/bus/pci/drivers/nvidia/bind"] = errno.ENODEV
    await devices.take_back(functions)
    assert sysfs.drivers()[GPU] == ""


async def test_one_that_cannot_be_reset_stays_out_of_everybodys_hands(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    sysfs.refused[f"{DEVICES}/{GPU}/reset"] = errno.ENOTTY
    with pytest.raises(HostError) as refused:
        await devices.take_back(functions)
    assert refused.value.reason == "DeviceNotReset"
    assert sysfs.drivers()[GPU] == VFIO, "what the guest left in it is nobody's to find"
    assert sysfs.drivers()[AUDIO] == "snd_hda_intel"
    assert sysfs.owners == {"dev/vfio/7": (0, 0)}
    sysfs.refused.clear()
    await devices.take_back(functions)
    assert sysfs.drivers()[GPU] == "nvidia"


async def test_a_former_driver_that_does_not_take_it_back_is_told_and_asked_again(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    sysfs.refused["sys/bus/pci/drivers/nvidia/bind"] = errno.EBUSY
    with pytest.raises(HostError) as refused:
        await devices.take_back(functions)
    assert refused.value.reason == "DeviceNotReturned"
    assert sysfs.overrides()[GPU] == "(null)"
    sysfs.refused.clear()
    await devices.take_back(functions)
    assert sysfs.drivers()[GPU] == "nvidia"


async def test_a_former_driver_that_is_not_loaded_any_more_keeps_nobody_waiting(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    (sysfs.root / "sys/bus/pci/drivers/nvidia").rmdir()
    await devices.take_back(functions)
    assert sysfs.drivers()[GPU] == ""
    assert sysfs.drivers()[AUDIO] == "snd_hda_intel"


async def test_one_that_is_pulled_out_is_noticed_before_and_given_back_after(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    await devices.give(functions, USER)
    sysfs.before[f"{DEVICES}/{GPU}/reset"] = lambda: sysfs.vanish(GPU)
    with pytest.raises(HostError):
        await devices.take_back(functions)
    await devices.take_back(functions)
    assert sysfs.drivers()[AUDIO] == "snd_hda_intel"
    with pytest.raises(HostError) as refused:
        await devices.give(functions, USER)
    assert refused.value.reason == "DeviceMissing"
    assert (await why_not(devices, GPU))[0] == "DeviceMissing"


async def test_one_that_somebody_has_bound_elsewhere_meanwhile_is_left_alone(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions = await of(devices, GPU)
    sysfs.write(f"{DEVICES}/{GPU}/driver/unbind", GPU)
    sysfs.load("nouveau")
    sysfs.write("sys/bus/pci/drivers/nouveau/bind", GPU)
    with pytest.raises(HostError) as refused:
        await devices.give(functions, USER)
    assert refused.value.reason == "DeviceChanged"
    assert sysfs.drivers()[GPU] == "nouveau"


async def test_nodes_are_given_once_udev_is_done_with_them(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    """It gives a new node an owner and a mode of its own, a moment after it is made."""
    functions = await of(devices, GPU)
    queue = sysfs.root / "run/udev/queue"
    queue.parent.mkdir(parents=True)
    queue.touch()
    there, looks = sysfs.there, 0

    def counted(name: str) -> bool:
        nonlocal looks
        if name == "run/udev/queue":
            assert sysfs.owners.get("dev/vfio/7") == (0, 0)
            looks += 1
            if looks == 3:
                queue.unlink()
        return there(name)

    sysfs.there = counted  # type: ignore[method-assign]
    await devices.give(functions, USER)
    assert looks == 3
    assert sysfs.owners == {"dev/vfio/7": (USER.uid, 0)}


async def test_a_driver_that_never_lets_go_holds_up_nobody_else(
    sysfs: FakeSysfs,
) -> None:
    """The kernel waits for whoever uses a function, as long as that takes."""
    devices, let_go = SysfsDevices(sysfs, change_s=0.2), threading.Event()
    functions, others = await of(devices, GPU), await of(devices, DISK)
    sysfs.before[f"{DEVICES}/{GPU}/driver/unbind"] = let_go.wait
    with pytest.raises(TimedOut):
        await devices.give(functions, USER)
    with pytest.raises(TimedOut, match="there is no answer"):
        await devices.take_back(functions)
    assert (await seen(devices)).functions[GPU].override == VFIO
    await devices.give(others, USER)
    await devices.take_back(others)
    let_go.set()
    while True:
        try:
            await devices.take_back(functions)
        except TimedOut:
            await asyncio.sleep(0.01)
        else:
            break
    assert sysfs.drivers()[GPU] == "nvidia"


async def test_a_caller_that_gives_up_leaves_no_half_behind_that_nobody_waits_for(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    functions, let_go = await of(devices, GPU), threading.Event()
    sysfs.before[f"{DEVICES}/{GPU}/driver/unbind"] = let_go.wait
    giving = asyncio.ensure_future(devices.give(functions, USER))
    await asyncio.sleep(0)
    giving.cancel()
    await asyncio.sleep(0)
    assert not giving.done(), "the effect goes on, so it is waited for"
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await giving
    assert sysfs.drivers()[GPU] == sysfs.drivers()[AUDIO] == VFIO
    await devices.take_back(functions)
    assert sysfs.drivers()[GPU] == "nvidia"


# --- what cannot be given


async def test_without_an_iommu_nothing_is_given(tmp_path: Path) -> None:
    bare = FakeSysfs(tmp_path / "bare", iommu=False)
    bare.add(GPU, group=None)
    assert (await why_not(SysfsDevices(bare), GPU))[0] == "IommuMissing"
    made_up = FakeSysfs(tmp_path / "made-up")
    made_up.add(GPU)
    (made_up.root / "sys/kernel/iommu_groups/7/name").write_text("vfio-noiommu\n")
    assert (await why_not(SysfsDevices(made_up), GPU))[0] == "IommuMissing"


async def test_without_the_kernels_driver_nothing_is_given(tmp_path: Path) -> None:
    host = FakeSysfs(tmp_path / "host", vfio=False)
    host.add(GPU)
    assert (await why_not(SysfsDevices(host), GPU))[0] == "VfioMissing"


async def test_a_group_is_given_whole_or_not_at_all_but_for_its_bridges(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    sysfs.add("0000:3a:00.0", 0x060400, group=7, driver="pcieport", bars_mib=0)
    assert await why_not(devices, GPU) == ("", "")
    assert "0000:3a:00.0" not in {f.address for f in await of(devices, GPU)}
    sysfs.add("0000:3b:00.2", 0x0C0330, group=7, driver="xhci_hcd")
    reason, message = await why_not(devices, GPU)
    assert reason == "DeviceGroupShared"
    assert "0000:3b:00.2" in message


def disk_of(sysfs: FakeSysfs, name: str = "nvme0n1", number: str = "259:0") -> Path:
    place = Path(sysfs.place(f"{DEVICES}/{DISK}")) / "nvme/nvme0" / name
    (place / "holders").mkdir(parents=True)
    (place / "dev").write_text(f"{number}\n")
    (sysfs.root / "sys/class/block" / name).symlink_to(place)
    return place


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("number", "nvme0n1 is mounted at /srv"),
        ("name", "nvme0n1 is mounted at /pool"),
        ("swap", "the host swaps to nvme0n1"),
        ("holder", "dm-0 stands on nvme0n1"),
        ("held", "something of the host holds nvme0n1"),
    ],
)
async def test_a_controller_whose_disk_the_host_uses_is_not_given(
    sysfs: FakeSysfs, devices: SysfsDevices, way: str, says: str
) -> None:
    place = disk_of(sysfs)
    assert await why_not(devices, DISK) == ("", "")
    mounts = sysfs.root / "proc/self/mountinfo"
    match way:
        case "number":
            mounts.write_text("36 35 259:0 / /srv rw - ext4 /dev/root rw\n")
        case "name":
            mounts.write_text(
                "36 35 0:52 / /pool rw shared:1 - btrfs /dev/nvme0n1 rw\n"
            )
        case "swap":
            (sysfs.root / "proc/swaps").write_text(
                "Filename\tType\n/dev/nvme0n1   partition 8 0 -2\n"
            )
        case "holder":
            (place / "holders/dm-0").touch()
        case "held":
            sysfs.held_disks.add("dev/nvme0n1")
    reason, message = await why_not(devices, DISK)
    assert reason == "DeviceInUse"
    assert says in message


def card_of(sysfs: FakeSysfs) -> Path:
    place = Path(sysfs.place(f"{DEVICES}/{NIC}")) / "net/enp66s0"
    place.mkdir(parents=True)
    (sysfs.root / "sys/class/net/enp66s0").symlink_to(place)
    return place


V4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
NOTHING = "0" * 32


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("route", f"{V4}enp66s0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n", "default route leads through enp66s0"),
        ("route", f"{V4}enp66s0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n", "route to its network leads through enp66s0"),
        ("ipv6_route", f"{NOTHING} 00 {NOTHING} 00 {NOTHING} 0 0 0 0 enp66s0\n", "default route leads through enp66s0"),
    ],
)  # fmt: skip
async def test_a_card_that_the_host_speaks_through_is_not_given(
    sysfs: FakeSysfs, devices: SysfsDevices, file: str, text: str, says: str
) -> None:
    card_of(sysfs)
    link_local = f"fe80{'0' * 28} 40 {NOTHING} 00 {NOTHING} 0 0 0 0 enp66s0\n"
    (sysfs.root / "proc/net/ipv6_route").write_text(link_local)
    assert await why_not(devices, NIC) == ("", "")
    (sysfs.root / "proc/net" / file).write_text(text)
    reason, message = await why_not(devices, NIC)
    assert reason == "DeviceInUse"
    assert says in message


async def test_a_card_below_a_bridge_or_a_bond_is_not_given(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    (card_of(sysfs) / "master").symlink_to("../../../../virtual/net/bond0")
    reason, message = await why_not(devices, NIC)
    assert (reason, "bond0 stands on enp66s0" in message) == ("DeviceInUse", True)


@pytest.mark.parametrize("node", ["dev/dri/renderD128", "dev/nvidia3"])
async def test_graphics_that_somebody_has_open_are_not_given(
    sysfs: FakeSysfs, devices: SysfsDevices, node: str
) -> None:
    (Path(sysfs.place(f"{DEVICES}/{GPU}")) / "drm/renderD128").mkdir(parents=True)
    about = sysfs.root / f"proc/driver/nvidia/gpus/{GPU}/information"
    about.parent.mkdir(parents=True)
    about.write_text("Model: \t\t Tesla\nDevice Minor: \t 3\n")
    assert await why_not(devices, GPU) == ("", "")
    sysfs.elsewhere.add(node)
    reason, message = await why_not(devices, GPU)
    assert (reason, node in message) == ("DeviceInUse", True)


async def test_the_hosts_console_is_not_given(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    (Path(sysfs.place(f"{DEVICES}/{GPU}")) / "boot_vga").write_text("1\n")
    assert (await why_not(devices, GPU))[0] == "DeviceInUse"


async def test_virtual_functions_are_given_and_what_has_made_them_is_not(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    card = Path(sysfs.place(f"{DEVICES}/{NIC}"))
    (card / "sriov_numvfs").write_text("2\n")
    virtual = sysfs.add("0000:42:00.2", 0x020000, group=12, driver="mlx5_core")
    (virtual / "physfn").symlink_to(card)
    reason, message = await why_not(devices, NIC)
    assert (reason, "2 virtual functions" in message) == ("DeviceInUse", True)
    picture = await devices.look(("0000:42:00.2",))
    assert picture.functions["0000:42:00.2"].physical == NIC
    assert obstacle("0000:42:00.2", picture, ("0000:42:00.2",)) is None


async def test_what_cannot_be_reset_alone_is_given_only_with_all_of_its_bus(
    sysfs: FakeSysfs, devices: SysfsDevices
) -> None:
    (Path(sysfs.place(f"{DEVICES}/{GPU}")) / "reset").unlink()
    assert await why_not(devices, GPU) == ("", ""), "its bus is all of its group"
    sysfs.add("0000:3b:01.0", group=13)
    assert (await why_not(devices, GPU))[0] == "DeviceNotResettable"
