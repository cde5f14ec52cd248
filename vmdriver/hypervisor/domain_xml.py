"""A launch plan as libvirt domain XML. Pure; the golden tests pin it.

Nothing in it stands in the way of saving and restoring memory (but for what a machine was
given of the host, devices and folders): a versioned machine type, no balloon, and a CPU that
libvirt records, or we do. Choices that were measured are in DECISIONS.md.
"""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from vmdriver.hypervisor import passed_devices, shared_folders, throttle
from vmdriver.hypervisor.abilities import Host
from vmdriver.hypervisor.domain_reading import METADATA, read_element
from vmdriver.hypervisor.guest_channel import CHANNEL
from vmdriver.hypervisor.memory.ram_stream import MAIN_BLOCK
from vmdriver.hypervisor.wall.sealing import ReadOnlyMapping
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.checkpoint import is_expanded
from vmdriver.model.passage import DIRECT, Passage
from vmdriver.model.plan import VOLUME_ROLES, Disk, LaunchPlan, MachineUser

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_ROLES = ("root", "seed", "status", "supervisor", *VOLUME_ROLES)
_DEVICE_NAMES = {role: f"vd{chr(ord('a') + at)}" for at, role in enumerate(_ROLES)}
MEMORY_MIB = 256
"""Of the accelerator probe's guest."""
UNASKED = "cpu-unavailable-features"
"""What libvirt is to believe that QEMU lacks (its src/qemu/qemu_capabilities.c)."""


def _add(
    parent: Xml.Element, tag: str, text: str | None = None, **attributes: str
) -> Xml.Element:
    element = Xml.SubElement(
        parent, tag, {k.rstrip("_"): v for k, v in attributes.items()}
    )
    element.text = text
    return element


def _boot(
    root: Xml.Element, kernel: str, initramfs: str, arguments: str, host: Host
) -> None:
    operating_system = _add(root, "os")
    _add(operating_system, "type", "hvm", arch=host.architecture, machine=host.machine)
    _add(operating_system, "kernel", kernel)
    _add(operating_system, "initrd", initramfs)
    _add(operating_system, "cmdline", arguments)


def _common(root: Xml.Element, host: Host) -> None:
    features = _add(root, "features")
    _add(features, "acpi")
    # A new id at every restore tells a kernel with the driver that its random state is
    # not unique any more.
    _add(root, "genid")
    _add(root, "cpu", mode=cpu_mode(host))
    _add(root, "clock", offset="utc")
    _add(root, "on_poweroff", "destroy")
    _add(root, "on_reboot", "destroy")
    _add(root, "on_crash", "destroy")
    if host.architecture == "x86_64" and host.domain_type != "test":
        # A machine whose root has put it to sleep stands still for good: nobody would press
        # its power button. Other boards have no such states that libvirt could take away.
        power = _add(root, "pm")
        _add(power, "suspend-to-mem", enabled="no")
        _add(power, "suspend-to-disk", enabled="no")


def cpu_mode(host: Host) -> str:
    """Of <cpu>. A restore elsewhere is checked and not hoped for. TCG's "maximum" cannot be
    expanded, but is the same for the same QEMU. Under KVM host-model becomes a named model with
    features in the stored XML, for which libvirt has to ask; where it does not, the plan says what
    the guest has.
    """
    if host.domain_type != "kvm":
        return "maximum"
    return "host-passthrough" if host.unasked else "host-model"


def _leave_unasked(root: Xml.Element) -> None:
    """libvirt (9.0) asks QEMU some 400 times for the CPU of a machine that it has begun, unless it
    believes that QEMU cannot say what it lacks.
    """
    Xml.register_namespace("qemu", _QEMU)
    capabilities = Xml.SubElement(root, f"{{{_QEMU}}}capabilities")
    Xml.SubElement(capabilities, f"{{{_QEMU}}}del", {"capability": UNASKED})


def _bound_translation(root: Xml.Element, plan: LaunchPlan) -> None:
    """A plan that knows no bound keeps what there is: libvirt shows that, too."""
    if plan.translated_mib is None or root.get("type") != "qemu":
        return
    features = root.find("features")
    if features is None:
        features = _add(root, "features")
    for element in features.findall("tcg"):
        features.remove(element)
    _add(_add(features, "tcg"), "tb-cache", str(plan.translated_mib), unit="MiB")


def _disk(devices: Xml.Element, disk: Disk) -> Xml.Element:
    element = _add(devices, "disk", type="file", device="disk")
    driver = _add(element, "driver", name="qemu", type=disk.format)
    if not disk.read_only:
        driver.set("discard", "unmap")
        driver.set("detect_zeroes", "unmap")
    _add(element, "source", file=disk.path)
    _backing(element, disk.backing)
    _add(element, "target", dev=_DEVICE_NAMES[disk.role], bus="virtio")
    if disk.read_only:
        _add(element, "readonly")
    _add(element, "serial", disk.role)
    return element


def _backing(element: Xml.Element, layers: tuple[str, ...]) -> None:
    for path in layers:
        element = _add(element, "backingStore", type="file")
        _add(element, "format", type="raw" if path == layers[-1] else "qcow2")
        _add(element, "source", file=path)
    if layers:
        _add(element, "backingStore")


def _console(devices: Xml.Element, path: str) -> None:
    serial = _add(devices, "serial", type="file")
    # Append: the file can then be cut while QEMU has it open.
    _add(serial, "source", path=path, append="on")
    _add(serial, "target", port="0")


def _security(root: Xml.Element, owner: Ownership | MachineUser) -> None:
    # relabel=no: our files belong to that user already, and libvirt must not touch
    # shared base disks.
    label = _add(root, "seclabel", type="static", model="dac", relabel="no")
    _add(label, "label", f"+{owner.uid}:+{owner.gid}")


def _relabel(root: Xml.Element, plan: LaunchPlan) -> None:
    if plan.user is not None:
        for element in root.findall("seclabel"):
            root.remove(element)
        _security(root, plan.user)


def _devices(root: Xml.Element, host: Host) -> Xml.Element:
    devices = _add(root, "devices")
    _add(devices, "emulator", host.emulator)
    # The default USB controller would only be more for the guest to probe.
    _add(devices, "controller", type="usb", model="none")
    return devices


def _platform_devices(devices: Xml.Element) -> None:
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", model="builtin")
    _add(devices, "panic", model="isa")
    _add(devices, "memballoon", model="none")


def _text(root: Xml.Element) -> str:
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode") + "\n"


def _cpu_tune(root: Xml.Element, plan: LaunchPlan) -> None:
    if plan.cpu_quota_millis is not None and "cgroup" not in plan.wall:
        tune = _add(root, "cputune")
        for name, value in throttle.cpu_quota(plan.cpu_quota_millis).items():
            _add(tune, name, str(value))


def _named_for_qemu(plan: LaunchPlan, passage: Passage) -> LaunchPlan:
    disks = tuple(
        disk.model_copy(
            update={
                "path": passage.theirs(disk.path),
                "backing": tuple(passage.theirs(path) for path in disk.backing),
            }
        )
        for disk in plan.disks
    )
    update = {
        "disks": disks,
        "kernel": passage.theirs(plan.kernel),
        "initramfs": passage.theirs(plan.initramfs),
        "console": passage.theirs(plan.console),
    }
    return plan.model_copy(update=update)


def render(plan: LaunchPlan, host: Host, mark: str, passage: Passage = DIRECT) -> str:
    """The sandbox's domain. `mark` goes into the metadata, where `marked` finds it."""
    plan = _named_for_qemu(plan, passage)
    Xml.register_namespace("vmdriver", METADATA)
    root = Xml.Element("domain", {"type": host.domain_type})
    _add(root, "name", plan.domain)
    _add(root, "uuid", plan.domain_uuid)
    metadata = _add(root, "metadata")
    Xml.SubElement(metadata, f"{{{METADATA}}}sandbox", {"mark": mark})
    _add(root, "memory", str(plan.memory_mib), unit="MiB")
    shared_folders.share_memory(root, plan)
    _add(root, "vcpu", str(plan.vcpus))
    _cpu_tune(root, plan)
    _boot(root, plan.kernel, plan.initramfs, plan.kernel_arguments, host)
    _common(root, host)
    _bound_translation(root, plan)
    devices = _devices(root, host)
    for disk in plan.disks:
        throttle.render(_disk(devices, disk), plan)
    interface = _add(devices, "interface", type="ethernet")
    _add(interface, "mac", address=plan.network.lease.mac)
    _add(interface, "target", dev=plan.network.opened_tap, managed="no")
    _add(interface, "model", type="virtio")
    _console(devices, plan.console)
    channel = _add(devices, "channel", type="unix")
    _add(channel, "source", mode="bind")
    _add(channel, "target", type="virtio", name=CHANNEL)
    _platform_devices(devices)
    passed_devices.render(devices, plan)
    shared_folders.render(devices, plan)
    _security(root, plan.user or host.owner)
    if host.unasked:
        _leave_unasked(root)
    return _text(root)


def for_restore(
    saved: str,
    plan: LaunchPlan,
    mark: str,
    memory: str,
    mapping: ReadOnlyMapping,
    passage: Passage = DIRECT,
    emulator: str = "",
    *,
    unasked: bool = False,
) -> str:
    """The machine that a checkpoint was taken of, as the plan's: the plan's name, disks, tap and
    console, its RAM mapped copy-on-write from the file `memory`, which QEMU may only read.
    Everything that its guest has seen (models, addresses on the buses, CPU) stays as it was.
    `emulator`: "" for the one that it had. `unasked`: see Host; not where libvirt has recorded what
    the CPU can do, and is to compare.
    """
    Xml.register_namespace("vmdriver", METADATA)
    Xml.register_namespace("qemu", _QEMU)
    plan = _named_for_qemu(plan, passage)
    root = Xml.fromstring(saved)  # noqa: S314 - libvirt's own output
    for tag in ("os/kernel", "os/initrd"):
        for element in root.findall(tag):
            element.text = passage.theirs(passage.ours(element.text or ""))
    root.attrib.pop("id", None)
    _set_text(root, "name", plan.domain)
    _set_text(root, "uuid", plan.domain_uuid)
    ours = ("commandline", "capabilities")
    for tag in ("cputune", *(f"{{{_QEMU}}}{tag}" for tag in ours), "metadata"):
        for element in root.findall(tag):
            root.remove(element)
    metadata = _add(root, "metadata")
    Xml.SubElement(metadata, f"{{{METADATA}}}sandbox", {"mark": mark})
    _cpu_tune(root, plan)
    devices = root.find("devices")
    if devices is None:
        raise ValueError("the saved domain has no devices")
    _set_text(devices, "emulator", emulator or devices.findtext("emulator", ""))
    _redirect_devices(devices, plan)
    _relabel(root, plan)
    _bound_translation(root, plan)
    _map_memory(root, plan, passage.theirs(memory), mapping)
    if unasked and not is_expanded(read_element(saved, "cpu")):
        _leave_unasked(root)
    return _text(root)


def _redirect_devices(devices: Xml.Element, plan: LaunchPlan) -> None:
    for element in devices.findall("disk"):
        _redirect_disk(element, plan.disk(element.findtext("serial", "")))  # type: ignore[arg-type]
        throttle.render(element, plan)
    for path, attribute, value in (
        ("interface/mac", "address", plan.network.lease.mac),
        ("interface/target", "dev", plan.network.opened_tap),
        ("serial/source", "path", plan.console),
        ("console/source", "path", plan.console),
    ):
        for element in devices.findall(path):
            element.set(attribute, value)
    for element in devices.findall("channel/source"):
        element.attrib.pop("path", None)


def _set_text(root: Xml.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = Xml.SubElement(root, tag)
    element.text = text


def _redirect_disk(element: Xml.Element, disk: Disk) -> None:
    for tag in ("source", "backingStore"):
        for child in element.findall(tag):
            element.remove(child)
    _add(element, "source", file=disk.path)
    _backing(element, disk.backing)


def _map_memory(
    root: Xml.Element, plan: LaunchPlan, memory: str, mapping: ReadOnlyMapping
) -> None:
    """libvirt 9.0 cannot name the file of a guest's RAM itself. Its own RAM object stays
    unused; of two -machine options QEMU takes the later one's value.
    """
    path = memory.replace(",", ",,")
    size = f"{plan.memory_mib}M"
    backend = (
        f"memory-backend-file,id={MAIN_BLOCK},size={size},mem-path={path},share=off"
        + "".join(f",{option}" for option in mapping.options)
    )
    command = Xml.SubElement(root, f"{{{_QEMU}}}commandline")
    for value in ("-object", backend, "-machine", f"memory-backend={MAIN_BLOCK}"):
        Xml.SubElement(command, f"{{{_QEMU}}}arg", {"value": value})
    for name, value in mapping.environment.items():
        Xml.SubElement(command, f"{{{_QEMU}}}env", {"name": name, "value": value})


def render_probe(
    name: str,
    boot: tuple[str, str],
    status_disk: str,
    console: str,
    host: Host,
    owner: Ownership,
) -> str:
    """The accelerator probe's guest: a kernel, our initramfs, and a disk to say "I am
    here" on. It runs as `owner`.
    """
    root = Xml.Element("domain", {"type": host.domain_type})
    _add(root, "name", name)
    _add(root, "memory", str(MEMORY_MIB), unit="MiB")
    _add(root, "vcpu", "1")
    _boot(
        root,
        *boot,
        "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init vmdriver_probe=1",
        host,
    )
    _common(root, host)
    devices = _devices(root, host)
    _disk(devices, Disk(role="status", path=status_disk, format="raw", read_only=False))
    _console(devices, console)
    _platform_devices(devices)
    _security(root, owner)
    if host.unasked:
        _leave_unasked(root)
    return _text(root)


def render_still(
    name: str, uuid: str, host: Host, owner: Ownership, *, asked: bool
) -> str:
    """A machine with the CPU of those that begin unasked, and nothing to run: to be looked at while
    it is paused.
    """
    root = Xml.Element("domain", {"type": host.domain_type})
    for tag, text in (("name", name), ("uuid", uuid), ("vcpu", "1")):
        _add(root, tag, text)
    _add(root, "memory", "64", unit="MiB")
    kind = _add(root, "os")
    _add(kind, "type", "hvm", arch=host.architecture, machine=host.machine)
    _common(root, host)
    _platform_devices(_devices(root, host))
    _security(root, owner)
    if not asked:
        _leave_unasked(root)
    return _text(root)
