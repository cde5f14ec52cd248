"""Plans, domain XML, rule sets and seeds, pinned as golden files."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.driver import spec
from tests.fakes.paths import FakePaths
from tests.fakes.settings import SETTINGS
from vmdriver.extension import PlanDraft
from vmdriver.hypervisor.abilities import Host
from vmdriver.hypervisor.domain_reading import read_mark
from vmdriver.hypervisor.domain_xml import (
    for_restore,
    render,
    render_probe,
)
from vmdriver.hypervisor.wall.sealing import ReadOnlyMapping, Sealing
from vmdriver.lifecycle.launch import environment, planner
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.walled import walled as wall
from vmdriver.lifecycle.ports.host import Ownership, Taken
from vmdriver.lifecycle.ports.paths import SandboxPaths
from vmdriver.model.devices import PassedFunction
from vmdriver.model.host_mount import HostMount
from vmdriver.model.image import ImageConfig
from vmdriver.model.machine_uids import MachineUids
from vmdriver.model.plan import Disk, LaunchPlan, MountedVolume, NetworkPlan
from vmdriver.model.spec import Resources
from vmdriver.network.rules import shared_rules as ruleset
from vmdriver.network.rules.machine_rules import rules_of
from vmdriver.storage.sandboxes import seed

Golden = Callable[[str, str], None]
GUEST = Path(__file__).parents[2] / "images" / "guest"
TCG = Host(
    "qemu", "x86_64", "pc-q35-7.2", "/usr/bin/qemu-system-x86_64", Ownership(64055, 107)
)
KVM = Host(
    "kvm", "x86_64", "pc-q35-7.2", "/usr/bin/qemu-system-x86_64", Ownership(64055, 107)
)


def plan(
    gateway_address: str | None = None,
    endpoint: str = "http://127.0.0.1:17670",
    **changes: Any,
) -> LaunchPlan:
    import dataclasses

    said = {"dns": ("192.0.2.53",), **changes.pop("settings", {})}
    way = changes.pop("way", None)
    own = dataclasses.replace(SETTINGS, endpoint=endpoint, **said)
    wanted = spec(
        environment={"A": "x y", "B": "q\"u'o\nte"},
        command=("/bin/run", "--flag"),
        **changes,
    )
    facts = planner.HostFacts(
        accelerator="tcg",
        boot=FakePaths().boot(),
        base_disk="/state/images/base.ext4",
        image_digest="sha256:" + "0" * 64,
        image_config=ImageConfig(
            environment={"FROM_IMAGE": "1", "A": "lower", "HOME": "/root"}
        ),
        supervisor_disk="/state/supervisors/x.img",
        paths=SandboxPaths(
            *(
                f"/state/sandboxes/s1/{n}"
                for n in (
                    *("seed.img", "status.img", "console.log", "suspended"),
                    *(
                        "mapped",
                        "not-restored",
                        "snapshots",
                        "capture.part",
                        "load.image",
                        "folders",
                    ),
                )
            )
        ),
        layers=("/state/layers/s1.0.qcow2",),
        lease=AddressPool("test", own.address_pool).take("s1", Taken()),
        own_networks=("192.0.2.0/24",),
        gateway_address=gateway_address,
        has_token=True,
        ipv6=way,
    )
    draft = PlanDraft()
    draft.on_behalf_of("example")
    draft.add_drop_in("50-trust", "#!/bin/sh\ntrue\n")
    draft.set_environment("HTTPS_PROXY", "http://proxy.example:3128")
    user = MachineUids(250000, 259999).user(250002)
    return planner.with_user(planner.resolve(wanted, own, facts, draft), user)


def with_volumes() -> LaunchPlan:
    """One to write and one to read."""
    found, disks = list[MountedVolume](), list[Disk]()
    for role, name, place in (("volume0", "a", "/data"), ("volume1", "b", "/srv/b")):
        known = {"role": role, "name": name}
        found.append(MountedVolume(**known, workspace="w", mount=place))
        path, more = f"/state/volumes/{name}/disk.raw", {"format": "raw"}
        size = {"size_mib": 2**20, "read_only": name == "b"}
        disks.append(Disk(role=role, path=path, **more, **size))
    value = plan()
    update = {"volumes": tuple(found), "disks": (*value.disks, *disks)}
    return value.model_copy(update=update)


def test_a_volume_is_a_disk_of_its_own_name() -> None:
    root = Xml.fromstring(render(with_volumes(), TCG, "mark"))
    shown = [
        (
            disk.findtext("serial"),
            disk.find("target").get("dev"),
            disk.find("source").get("file"),
            disk.find("readonly") is not None,
        )
        for disk in root.findall("devices/disk")
    ]
    assert shown[4:] == [
        ("volume0", "vde", "/state/volumes/a/disk.raw", False),
        ("volume1", "vdf", "/state/volumes/b/disk.raw", True),
    ]
    assert len({dev for _, dev, _, _ in shown}) == len(shown)


def test_the_plan(golden: Golden) -> None:
    golden(
        "plan.json",
        plan(resources=Resources(cpu_millis=1500, memory_mib=768)).model_dump_json(
            indent=1
        )
        + "\n",
    )


@pytest.mark.parametrize(("name", "host"), [("tcg", TCG), ("kvm", KVM)])
def test_the_domain_xml(name: str, host: Host, golden: Golden) -> None:
    text = render(
        plan(resources=Resources(cpu_millis=1500, memory_mib=768)),
        host,
        "vmdriver/test/s1",
    )
    golden(f"domain-{name}.xml", text)
    (ours,) = Xml.fromstring(text).findall("metadata/*")
    assert read_mark(Xml.tostring(ours, "unicode")) == "vmdriver/test/s1"


def test_what_the_kernel_limits_itself_is_not_asked_of_libvirt() -> None:
    part = plan(resources=Resources(cpu_millis=1500))
    assert "<cputune>" in render(part, TCG, "m")
    walled = part.model_copy(update={"wall": ("cgroup",)})
    text = render(walled, TCG, "m")
    assert "<cputune>" not in text
    saved = render(part, TCG, "m")
    again = for_restore(saved, walled, "m", "/memory", ReadOnlyMapping())
    assert "<cputune>" not in again


def test_what_qemu_keeps_of_translated_code_is_bounded_where_it_translates() -> None:
    had = plan()
    assert had.translated_mib is not None
    bound = [("MiB", str(had.translated_mib))]
    assert bounds_in(render(had, TCG, "m")) == bound
    assert bounds_in(render(had, KVM, "m")) == []
    unbounded = had.model_copy(update={"translated_mib": None})
    assert bounds_in(render(unbounded, TCG, "m")) == [], "as of an earlier plan"


@pytest.mark.parametrize(
    "before", ["", "<tcg><tb-cache unit='KiB'>1024</tb-cache></tcg>"]
)
def test_a_machine_that_comes_back_has_the_bound_of_its_plan_whatever_it_had(
    before: str,
) -> None:
    had = plan()
    unbounded = had.model_copy(update={"translated_mib": None})
    saved = render(unbounded, TCG, "m").replace("<acpi />", f"<acpi />{before}")
    again = for_restore(saved, had, "m", "/memory", ReadOnlyMapping())
    assert bounds_in(again) == [("MiB", str(had.translated_mib))]
    kept = for_restore(saved, unbounded, "m", "/memory", ReadOnlyMapping())
    assert bounds_in(kept) == ([("KiB", "1024")] if before else [])
    on_kvm = saved.replace('type="qemu"', 'type="kvm"').replace(before, "")
    assert bounds_in(for_restore(on_kvm, had, "m", "/memory", ReadOnlyMapping())) == []


def bounds_in(text: str) -> list[tuple[str | None, str | None]]:
    found = Xml.fromstring(text).iterfind("features/tcg/tb-cache")
    return [(element.get("unit"), element.text) for element in found]


def test_a_machine_that_comes_back_is_limited_as_its_plan_says() -> None:
    had = plan(settings={"max_disk_iops": 100, "max_disk_mib_s": 10})
    saved = render(had, TCG, "m")
    assert saved.count("<group_name>machine</group_name>") == len(had.disks)
    assert saved.count("<total_bytes_sec>10485760</total_bytes_sec>") == len(had.disks)
    fewer = had.model_copy(update={"disk_iops": 50, "disk_mib_s": None})
    again = for_restore(saved, fewer, "m", "/memory", ReadOnlyMapping())
    assert again.count("<total_iops_sec>50</total_iops_sec>") == len(had.disks)
    assert "total_bytes_sec" not in again
    none, mapping = fewer.model_copy(update={"disk_iops": None}), ReadOnlyMapping()
    assert "iotune" not in for_restore(again, none, "m", "/memory", mapping)


@pytest.mark.parametrize(
    ("version", "option", "preloaded"),
    [
        (7_002_022, "share=off", True),
        (8_001_005, "share=off", True),
        (8_002_000, "share=off,readonly=on,rom=off", False),
        (10_000_002, "share=off,readonly=on,rom=off", False),
    ],
)
def test_memory_is_mapped_for_reading_by_every_release_of_qemu(
    version: int, option: str, preloaded: bool
) -> None:
    sealing, memory = Sealing(Path("/state/libvirt")), "/state/a,b/memory"
    mapping = sealing.mapping(version, memory)
    text = for_restore(render(plan(), TCG, "m"), plan(), "m", memory, mapping)
    root = Xml.fromstring(text)
    commands = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
    (command,) = root.findall(commands)
    arguments = [
        element.get("value", "") for element in command if "value" in element.attrib
    ]
    assert any(a.endswith(f",mem-path=/state/a,,b/memory,{option}") for a in arguments)
    told = {e.get("name"): e.get("value") for e in command if e.get("name")}
    wanted = {"LD_PRELOAD": str(sealing.library), "VMDRIVER_READ_ONLY_MEMORY": memory}
    assert told == (wanted if preloaded else {})
    again = for_restore(text, plan(), "m", memory, mapping)
    assert again == text, "a machine that comes back twice is told once"


def test_the_probes_domain_xml(golden: Golden) -> None:
    golden(
        "domain-probe.xml",
        render_probe(
            *("test-probe", ("/kernel", "/initramfs"), "/status", "/console", KVM),
            Ownership(250001, 250000),
        ),
    )


def test_nothing_secret_or_unsavable_is_in_the_domain() -> None:
    text = render(plan(), TCG, "m")
    for word in (
        "filesystem",
        "9p",
        "host-passthrough",
        "hostdev",
        'memballoon model="virtio"',
        "sandbox.jwt",
    ):
        assert word not in text
    assert "pc-q35-7.2" in text


def walled(network: NetworkPlan, *more: str) -> str:
    """Both rulesets of a machine with a namespace of its own, on a host with two addresses."""
    host = ("192.0.2.7/32", "192.0.2.255/32", *more)
    loaded = rules_of(network, "vmdriver/test/s1", host)
    assert [rules.namespace for rules in loaded] == [network.lease.tap, None]
    return "".join(
        f"# in {rules.namespace or 'the host'}\n{rules.text}" for rules in loaded
    )


@pytest.mark.parametrize("egress", ["open", "private-denied", "none"])
def test_the_rule_set(egress: str, golden: Golden) -> None:
    network = plan(settings={"egress": egress, "dns_without_egress": True}).network
    golden(f"rules-{egress}.nft", ruleset.render(network, "vmdriver/test/s1"))
    golden(f"walled-{egress}.nft", walled(network))
    assert "192.0.2.53" not in walled(plan(settings={"egress": "none"}).network)


@pytest.mark.parametrize(("name", "access"), [("all", "all"), ("ports", (11434, 8000))])
def test_the_rule_set_for_services_of_the_host(
    name: str, access: object, golden: Golden
) -> None:
    network = plan(settings={"host_access": access}).network
    golden(f"rules-host-{name}.nft", ruleset.render(network, "vmdriver/test/s1"))
    golden(f"walled-host-{name}.nft", walled(network))


def test_a_network_from_before_there_was_an_alias_is_read_and_keeps_its_address() -> (
    None
):
    values = plan().network.model_dump(mode="json")
    del values["host_alias"], values["host_access"]
    old = NetworkPlan.model_validate_json(json.dumps(values))
    assert (old.host_address, old.host_ports) == ("10.0.128.1", (17670,))
    assert "ip daddr 10.0.128.1 tcp dport { 17670 } dnat" in ruleset.render(old, "m")
    assert "ip daddr 10.0.128.1 tcp dport { 17670 } dnat" in walled(old)


def test_the_rule_set_of_a_machine_that_asks_the_host_for_names(golden: Golden) -> None:
    asks = {"dns": ("192.168.127.254",), "search": ("corp.example", "lab.example")}
    golden("walled-names.nft", walled(plan(settings=asks).network))
    everything = walled(plan(settings={**asks, "host_access": "all"}).network)
    names, services = (
        everything.index(f"ip daddr 192.168.127.254 meta l4proto {what} ")
        for what in ("{ tcp, udp } th dport 53 dnat", "tcp dnat")
    )
    assert names < services, "the host's own port 53 would be asked"
    nobody = plan(settings={**asks, "egress": "none"}).network
    assert "dport 53" not in walled(nobody)


def test_the_rule_set_with_lists_of_networks(golden: Golden) -> None:
    lists = {"egress_allow": ("10.9.0.0/16",), "egress_deny": ("198.51.100.0/24",)}
    asked = {
        "egress_allow": ["10.9.1.0/24", "192.0.2.0/24"],
        "egress_deny": ["10.9.1.7"],
    }
    network = plan(settings=lists, driver_config=asked).network
    golden("rules-lists.nft", ruleset.render(network, "vmdriver/test/s1"))
    golden("walled-lists.nft", walled(network))


def test_a_request_that_wants_no_networks_gets_no_names_either() -> None:
    network = plan(driver_config={"egress_allow": []}).network
    assert network.dns == ()
    assert walled(network).rstrip().count("ip daddr != ") == 0
    halves = {"egress_deny": ["0.0.0.0/1", "128.0.0.0/1"]}
    assert plan(driver_config=halves).network.dns == ()
    assert plan(driver_config={"egress_deny": ["0.0.0.0/1"]}).network.dns
    allowed = {"dns_without_egress": True}
    assert plan(driver_config={"egress_allow": []}, settings=allowed).network.dns


def test_a_machine_that_goes_on_from_memory_reaches_what_egress_says_now() -> None:
    before = plan(settings={"egress": "open"})
    assert before.network.dns
    now = replace(SETTINGS, egress="none")
    after = wall(planner.limited(before, spec(), now), now).network
    assert (after.egress, after.dns) == ("none", ())


def test_the_rule_set_for_a_gateway_elsewhere(golden: Golden) -> None:
    network = plan("198.51.100.7", "https://gateway.example:8443").network
    golden("rules-gateway-elsewhere.nft", ruleset.render(network, "vmdriver/test/s1"))
    golden("walled-gateway-elsewhere.nft", walled(network))


@pytest.mark.parametrize(
    ("url", "expected", "local"),
    [
        ("http://127.0.0.1:17670", "http://host.openshell.internal:17670", True),
        ("https://localhost", "https://host.openshell.internal:443", True),
        ("http://0.0.0.0:80/", "http://host.openshell.internal:80/", True),
        ("http://[::1]:8080", "http://host.openshell.internal:8080", True),
        (
            "https://host.openshell.internal:8443",
            "https://host.openshell.internal:8443",
            True,
        ),
        ("https://gateway.example:8443/x", "https://gateway.example:8443/x", False),
        ("http://192.0.2.7:1", "http://192.0.2.7:1", False),
    ],
)
def test_the_endpoint_keeps_its_name(url: str, expected: str, local: bool) -> None:
    endpoint = environment.guest_endpoint(url)
    assert (endpoint.url, endpoint.on_host_loopback) == (expected, local)


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "127.0.0.1:80", "http://", "http://u:p@h/"]
)
def test_no_endpoints(url: str) -> None:
    with pytest.raises(ValueError, match="is not an http"):
        environment.guest_endpoint(url)


def test_the_main_process_is_passed_exactly() -> None:
    import base64

    text = environment.main_process_spec(("/bin/x", "a b", "", "é\n"), tty=False)
    assert "=" not in text
    body = text.removeprefix("base64url:")
    value = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert value == {
        "version": 1,
        "command": ["/bin/x", "a b", "", "é\n"],
        "tty": False,
    }
    empty = environment.main_process_spec((), tty=False).removeprefix("base64url:")
    assert json.loads(base64.urlsafe_b64decode(empty + "=" * (-len(empty) % 4)))[
        "command"
    ] == ["/bin/bash", "-l"]


ORDERS = ("LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "GCONV_PATH", "MALLOC_PERTURB_", "SSL_CERT_FILE",
          "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY", "RUST_LOG", "RES_OPTIONS", "BASH_ENV",
          "IFS", "TMPDIR", "PYTHONPATH", "LOCALDOMAIN", "HOSTALIASES")  # fmt: skip
"""What a program that is root obeys."""


def test_nothing_of_the_users_environment_is_the_supervisors_own() -> None:
    asked = {"PATH": "/evil", "HOME": "/x", "A": "1"} | dict.fromkeys(ORDERS, "/evil")
    image = ImageConfig(environment=dict.fromkeys(ORDERS, "/image")).environment
    own, values = (
        environment.environment(s, SETTINGS, has_token=False, image=image)
        for s in (spec(), spec(environment=asked))
    )
    users = json.loads(values.pop("OPENSHELL_USER_ENVIRONMENT"))
    assert users == asked, "its own processes get what it asked for"
    own.pop("OPENSHELL_USER_ENVIRONMENT")
    assert values == own
    assert values["HOME"] == "/sandbox"
    assert "evil" not in str(values)
    assert "OPENSHELL_SANDBOX_TOKEN_FILE" not in values
    assert "OPENSHELL_TLS_CA" not in values


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Box!", "my-box"),
        ("", "sandbox-s1"),
        ("-a-", "a"),
        ("x" * 80, "x" * 63),
        ("ÄÖ", "sandbox-s1"),
    ],
)
def test_host_names(name: str, expected: str) -> None:
    assert environment.hostname(name, "s1") == expected


def test_the_seed_holds_what_init_reads() -> None:
    folders = with_host_mounts().host_mounts
    value = with_volumes().model_copy(
        update={"operator_exec": True, "host_mounts": folders}
    )
    data = seed.build(
        value,
        {**value.environment, "X": "1"},
        seed.Secrets({"auth/sandbox.jwt": b"t\n", "tls/tls.crt": b"c"}),
    )
    assert seed.disk_bytes(len(data)) % seed.UNIT == 0
    assert seed.disk_bytes(len(data)) > len(data), "there is room for a longer token"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {m.name: m for m in archive.getmembers()}
        content = {
            n: archive.extractfile(m).read() for n, m in members.items() if m.isfile()
        }
    assert members["over/opt/openshell/auth/sandbox.jwt"].mode == 0o600
    assert members["over/opt/openshell/auth"].mode == 0o700
    assert members["over/opt/openshell/tls/tls.crt"].mode == 0o644
    assert members["over/opt/openshell/init.d/50-trust"].mode == 0o755
    assert content["over/opt/openshell/init.d.manifest"] == b"50-trust\n"
    assert content["init/address"] == b"10.0.128.2/30\n"
    assert content["init/gateway"] == b"10.0.128.1\n"
    assert content["init/volumes"] == b"volume0 rw a /data\nvolume1 ro b /srv/b\n"
    assert b"192.168.127.254 host.openshell.internal\n" in content["over/etc/hosts"]
    assert b"X=1\0" in content["init/environ"]
    init, become = ((GUEST / name).read_text() for name in ("init", "become.c"))
    read = [f"init/{name}" for name in re.findall(r'"\$SEED/([a-z./-]+)"', init)]
    read += re.findall(r'"(init/[a-z-]+)"', become)
    assert {"init/barrier", "init/environ", "init/mac"} <= set(read)
    for name in read:
        assert name in {"init/barrier", *content} or any(
            m.startswith(name.rstrip("/.")) for m in members
        ), f"init reads {name}"


def test_operators_are_let_in_only_where_the_plan_says_so() -> None:
    for allowed in (False, True):
        value = plan().model_copy(update={"operator_exec": allowed})
        data = seed.build(value, {}, seed.Secrets({}))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert ("init/operator-exec" in archive.getnames()) is allowed
    assert plan().operator_exec is False


LAUNCH = r"""
#include <stdio.h>
#include <unistd.h>
#include "seed.h"
int main(int argc, char **argv) {
    static char bytes[1 << 20];
    struct seed seed;
    size_t size = fread(bytes, 1, sizeof bytes, stdin);
    if (argc < 2 || !seed_read(bytes, size, &seed))
        return 125;
    return execve(argv[1], argv + 1, seed_environment(seed_file(&seed, "init/environ")));
}
"""
"""A program with the environment that the seed gives, as the guest's reader has it."""


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("launch") / "launch"
    command = ["gcc", "-Wall", "-Werror", f"-I{GUEST}", "-o", str(program)]
    command += ["-x", "c", "-", str(GUEST / "seed.c")]
    subprocess.run(command, input=LAUNCH.encode(), check=True)
    return program


VALUES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,20}\Z"), VALUES, max_size=6
    )
)
def test_every_byte_of_a_value_survives_the_way_into_a_process(
    launch: Path, values: dict[str, str]
) -> None:
    out = subprocess.run(
        [launch, "/usr/bin/env", "-0"],
        input=seed.build(plan(), values, seed.Secrets({})),
        capture_output=True,
        check=True,
    ).stdout
    got = dict(item.decode().split("=", 1) for item in out.split(b"\0") if item)
    assert got == values


def with_devices(*bars_mib: int) -> LaunchPlan:
    """Of a machine with as many GPUs, the first of which brings its sound along."""
    functions = tuple(
        PassedFunction(
            address=f"0000:{0x3B + at:02x}:00.0",
            group=7 + at,
            driver="nvidia",
            bar_mib=size,
        )
        for at, size in enumerate(bars_mib)
    )
    sound = PassedFunction(address="0000:3b:00.1", group=7, given=False, bar_mib=1)
    return plan().model_copy(
        update={
            "accelerator": "kvm",
            "devices": tuple(f.address for f in functions),
            "passed": (*functions, sound),
        }
    )


def test_the_domain_xml_of_a_machine_with_a_device(golden: Golden) -> None:
    golden("domain-device.xml", render(with_devices(288), KVM, "vmdriver/test/s1"))


def test_devices_with_much_memory_have_room_for_it() -> None:
    """q35 leaves 32 GiB by itself; what the firmware cannot place, the guest does not see."""
    small = Xml.fromstring(render(with_devices(16 * 1024), KVM, "m"))
    assert small.find("devices/controller[@model='pcie-root']") is None
    large = Xml.fromstring(render(with_devices(128 * 1024, 256), KVM, "m"))
    hole = large.find("devices/controller[@model='pcie-root']/pcihole64")
    assert hole is not None
    assert (hole.text, hole.get("unit")) == (str(512 * 1024), "MiB")
    assert len(large.findall("devices/hostdev[@managed='no']")) == 2


def with_host_mounts() -> LaunchPlan:
    """One to read as its own user, and one to write as another."""
    found = []
    for number, (path, place) in enumerate(
        (("/srv/models", "/data"), ("/srv/out", "/out"))
    ):
        found.append(
            HostMount(
                tag=f"folder{number}",
                path=path,
                allowed=path,
                mount=place,
                read_only=not number,
                uid=1000 if number else None,
                gid=1000 if number else None,
                socket=f"/state/sandboxes/s1/folders/folder{number}.sock",
            )
        )
    return plan().model_copy(update={"host_mounts": tuple(found)})


def test_the_domain_xml_of_a_machine_with_folders_of_the_host(golden: Golden) -> None:
    golden("domain-folders.xml", render(with_host_mounts(), TCG, "vmdriver/test/s1"))


def test_memory_is_shared_where_there_are_folders_alone() -> None:
    assert "memoryBacking" not in render(plan(), TCG, "m")


def test_the_guest_is_told_its_folders() -> None:
    value = with_host_mounts()
    data = seed.build(value, value.environment, seed.Secrets({}))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile("init/folders")
        assert file is not None
        assert file.read() == b"folder0 ro /data\nfolder1 rw /out\n"
