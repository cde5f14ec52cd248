"""Machines with IPv6: who has it, by which addresses, and what is reached, as it is decided and explained."""

from __future__ import annotations

import io
import ipaddress
import itertools
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.driver import spec
from tests.fakes.settings import SETTINGS
from tests.unit.test_egress import network
from tests.unit.test_names import A, asked, option
from tests.unit.test_plan_rendering import Golden, plan, walled
from vmdriver.cli.doctor.network_findings import ipv6_finding
from vmdriver.config import config_of, load
from vmdriver.config.views import settings_from
from vmdriver.errors import ConfigError, InvalidRequest
from vmdriver.lifecycle.control.checks import check
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.walled import walled as wall
from vmdriver.model.egress import networks_of
from vmdriver.model.ipv6 import WayToIpv6, block, private_pool
from vmdriver.model.plan import LaunchPlan, NetworkPlan
from vmdriver.model.spec import SandboxSpec
from vmdriver.network.names.query import question_of
from vmdriver.network.reach.explained import Destination, deciding, rules
from vmdriver.network.rules.destinations import ALWAYS_DENIED, ALWAYS_DENIED_IPV6
from vmdriver.storage.sandboxes import seed

WITH = replace(SETTINGS, egress_ipv6=True)
WAY = WayToIpv6(networks=("2001:db8:5::/64",))
ON = {"egress_ipv6": True}
POOL = "fd00:1::/64"
HOST = ("198.18.7.1/32", "2001:db8:5::7/128")


def six(**changes: object) -> NetworkPlan:
    return network(ipv6=block(POOL, 0, WAY.networks), **changes)


def reached(of: NetworkPlan, address: str, port: int = 443) -> bool:
    known = rules(of, HOST)
    return known[deciding(known, Destination(address, port))].reached


NEVER = [
    *("::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1"),
    *("2001::1", "2002:a00:1::1", "100::1", "5f00::1", "fe80::1", "fec0::1", "ff02::1"),
    *("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
    *("fd00:a9fe:a9fe::1", "fd00:100::100:200", "fd00:1::6", "2001:db8:5::7"),
]


def said(**flags: str) -> None:
    """By an operator."""
    load(flags=flags, environment={}, file=Path("/dev/null"))


def test_by_default_nobody_has_any_and_lists_of_it_are_refused_with_the_field() -> None:
    assert plan(way=WAY).network.ipv6 is None
    assert plan(way=WAY).network.no_ipv6 == ""
    for name in ("egress_allow", "egress_deny"):
        with pytest.raises(ConfigError, match=f"{name}: 2001:db8::/32 .* egress_ipv6"):
            said(**{name: "2001:db8::/32"})
        field = rf"template.driver_config.{name}.*egress_ipv6"
        wanted = SandboxSpec(
            id="a", name="a", image="i", driver_config={name: ["::/0"]}
        )
        with pytest.raises(InvalidRequest, match=field):
            check(wanted, SETTINGS)
        check(wanted, WITH)
    found = config_of({**ON, "egress_deny": ["2001:db8::1", "10.1.0.0/16"]}).network
    assert found.egress_deny == ["10.1.0.0/16", "2001:db8::1/128"]


@pytest.mark.parametrize("which", ["2001:db8::%eth0/32", "2001:db8::% }\n#/128"])
def test_what_is_of_one_link_alone_is_no_network(which: str) -> None:
    """Python takes it for one, with whatever is behind the sign; nft does not."""
    for name in ("egress_allow", "egress_deny"):
        with pytest.raises(ValueError, match="is no IPv4 or IPv6 network"):
            config_of({**ON, name: [which]})
        wanted = SandboxSpec(id="a", name="a", image="i", driver_config={name: [which]})
        with pytest.raises(InvalidRequest, match="is no IPv4 or IPv6 network"):
            check(wanted, WITH)


@pytest.mark.parametrize(
    "address", ["fe80::/16", "fd00:ec2::254", "64:ff9b::/96", "fd01::/64"]
)
def test_nobody_may_allow_what_nobody_reaches(address: str) -> None:
    with pytest.raises(ConfigError, match="never reached"):
        said(egress_ipv6="true", egress_allow=address, address_pool_ipv6="fd01::/48")


@pytest.mark.parametrize(
    "pool",
    ["fd00::/97", "fe80::/64", "2002::/64", "10.0.0.0/8", "fd00::1/64", "fd00::%a/64"],
)
def test_what_can_be_no_pool_is_refused(pool: str) -> None:
    with pytest.raises(ConfigError, match="address_pool_ipv6"):
        said(address_pool_ipv6=pool)


def test_each_driver_has_a_pool_of_its_own_unless_it_is_named() -> None:
    one, other = (settings_from(config_of({**ON, "instance": i})) for i in ("a", "b"))
    assert one.address_pool_ipv6 == private_pool("a") != other.address_pool_ipv6
    named = settings_from(config_of({**ON, "address_pool_ipv6": "2001:db8:7::/64"}))
    assert named.address_pool_ipv6 == "2001:db8:7::/64"


def test_a_machine_has_the_addresses_of_its_block_or_the_reason_why_not() -> None:
    found = plan(settings=ON, way=WAY).network
    assert found.ipv6 == block(
        SETTINGS.address_pool_ipv6, found.lease.index, WAY.networks
    )
    without = plan(settings=ON, way=WayToIpv6("no way")).network
    assert (without.ipv6, without.no_ipv6) == (None, "no way")
    said = [rule.sentence for rule in rules(without, ()) if "::/0" in rule.networks]
    assert said == ["it has no IPv6: no way"]


def test_at_another_address_it_has_the_ipv6_of_that_one() -> None:
    before = plan(settings=ON, way=WAY)
    lease = before.network.lease.model_copy(update={"index": 7, "tap": "vmd7"})
    after = planner.with_lease(before, lease).network
    assert after.ipv6 == block(SETTINGS.address_pool_ipv6, 7, WAY.networks)
    assert planner.with_lease(plan(), lease).network.ipv6 is None


def test_one_that_goes_on_from_memory_loses_it_when_it_is_not_wanted_and_never_gains_it() -> (
    None
):
    had, had_not = plan(settings=ON, way=WAY), plan()
    assert planner.limited(had, spec(), SETTINGS).network.ipv6 is None
    assert planner.limited(had, spec(), WITH).network.ipv6 == had.network.ipv6
    assert planner.limited(had_not, spec(), WITH).network.ipv6 is None
    bare = replace(WITH, namespaces=False)
    found = wall(had, bare).network
    assert found.ipv6 is None, "only behind rules of its own"
    assert "namespaces" in found.no_ipv6
    assert not wall(had_not, bare).network.no_ipv6, "nobody wanted any"


def test_the_guest_is_told_its_address_and_whom_not_to_ask_for() -> None:
    made = plan(settings=ON, way=WAY)
    lines, own = given_files(made), made.network.ipv6
    assert own is not None
    assert lines["init/address6"].decode() == f"{own.guest_ip}\n"
    gateway, mac = lines["init/gateway6"].decode().split()
    assert gateway == own.host_ip
    assert mac[2:] == made.network.lease.mac[2:]
    assert mac != made.network.lease.mac
    assert not [name for name in given_files(plan()) if "6" in name]


def given_files(made: LaunchPlan) -> dict[str, bytes]:
    """The files of its seed."""
    content = io.BytesIO(seed.build(made, {}, seed.Secrets({})))
    with tarfile.open(fileobj=content) as archive:
        files = {one.name: archive.extractfile(one) for one in archive if one.isfile()}
        return {name: file.read() for name, file in files.items() if file}


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("egress", ["open", "private-denied", "none"])
def test_what_nobody_reaches_is_not_reached_whatever_is_allowed(
    egress: str, address: str
) -> None:
    allowed = networks_of([f"{address}/128", "::/0"], ipv6=True)
    assert not reached(six(egress=egress, egress_allow=allowed), address)


@pytest.mark.parametrize(
    ("changes", "there", "not_there"),
    [
        ({}, ["2001:db8::1", "2a00::1"], ["fd99::1", "2001:db8:5::1"]),
        ({"egress": "open"}, ["2001:db8::1", "fd99::1", "2001:db8:5::1"], []),
        ({"egress": "none"}, [], ["2001:db8::1", "fd99::1"]),
        ({"egress": "none", "egress_allow": ("fd99::/64",)}, ["fd99::1"], ["2a00::1"]),
        ({"egress_deny": ("2a00::/12",)}, ["2001:db8::1"], ["2a00::1"]),
        ({"egress_deny": ("0.0.0.0/0",)}, ["2001:db8::1"], ["8.8.8.8"]),
        ({"egress_deny": ("::/0",)}, ["8.8.8.8"], ["2001:db8::1"]),
        ({"egress_only": ("8.8.8.0/24",)}, ["8.8.8.8"], ["2001:db8::1"]),
        ({"egress_only": ("2001:db8::/32",)}, ["2001:db8::1"], ["8.8.8.8", "2a00::1"]),
        ({"egress_only": ()}, [], ["8.8.8.8", "2001:db8::1"]),
    ],
    ids=str,
)
def test_the_same_order_decides_for_both_versions(
    changes: dict[str, object], there: list[str], not_there: list[str]
) -> None:
    found = six(**changes)
    assert [one for one in there if not reached(found, one)] == []
    assert [one for one in not_there if reached(found, one)] == []


NETWORKS = st.lists(
    st.ip_addresses(v=6).map(lambda a: f"{a}/128")
    | st.sampled_from(["2000::/3", "fc00::/7", "::/0", "2001:db8::/32", "0.0.0.0/0"]),
    max_size=3,
)


@given(
    st.sampled_from(["open", "private-denied", "none"]),
    NETWORKS,
    NETWORKS,
    st.none() | NETWORKS,
    st.ip_addresses(v=6).map(str) | st.sampled_from(["2001:db8::9", "fd99::1"]),
)
def test_no_request_reaches_more_than_the_operator_allows(
    egress: str, allow: list[str], deny: list[str], only: list[str] | None, to: str
) -> None:
    operators = {"egress": egress, "egress_allow": networks_of(allow, ipv6=True)}
    wanted = None if only is None else networks_of(only, ipv6=True)
    mine = networks_of(deny, ipv6=True)
    limited = six(**operators, egress_only=wanted, egress_deny=mine)
    assert reached(six(**operators), to) or not reached(limited, to)


def test_names_go_only_when_nothing_of_either_version_is_reached() -> None:
    deny = {"egress_deny": ["0.0.0.0/0"]}
    assert plan(driver_config=deny).network.dns == ()
    with_it = plan(driver_config=deny, settings=ON, way=WAY)
    assert with_it.network.dns
    assert wall(with_it, replace(WITH, namespaces=False)).network.dns == ()
    both = {"egress_deny": ["0.0.0.0/0", "::/0"]}
    assert plan(driver_config=both, settings=ON, way=WAY).network.dns == ()


def test_networks_of_the_list_do_not_overlap() -> None:
    """nftables takes no set whose members do."""
    for lists in (ALWAYS_DENIED, ALWAYS_DENIED_IPV6):
        for one, other in itertools.combinations(lists, 2):
            assert not ipaddress.ip_network(one).overlaps(ipaddress.ip_network(other))


def test_the_rule_set(golden: Golden) -> None:
    lists = {
        "egress_allow": ("10.9.0.0/16", "fd99::/64"),
        "egress_deny": ("2001:db8:66::/48",),
    }
    found = plan(settings={**ON, **lists}, way=WAY).network
    golden("walled-ipv6.nft", walled(found, "2001:db8:5::7/128"))


def test_doctor_says_whether_guests_have_it() -> None:
    assert ipv6_finding(WITH, WAY).level == "ok"
    lacking = ipv6_finding(WITH, WayToIpv6("routers"))
    assert (lacking.level, "routers" in lacking.message) == ("warn", True)


@pytest.mark.parametrize("kind", [28, 65, A])
def test_questions_for_ipv6_are_passed_on_and_failures_are_told_as_asked(
    kind: int,
) -> None:
    plain = question_of(asked(kind=kind))
    assert plain is not None
    assert plain.failed()[10:12] == b"\0\0"
    extended = question_of(
        asked(kind=kind, counts=(1, 0, 0, 1), more=option(1232, 0x8000))
    )
    assert extended is not None
    assert extended.failed()[10:12] == b"\0\1", "or it is taken for a server without"
    assert extended.failed().endswith(option(1232, 0x8000))
