"""Lists of networks, of operators and of requests; and what a sandbox reaches, in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.settings import SETTINGS
from vmdriver.config import config_of, load
from vmdriver.errors import ConfigError, InvalidRequest
from vmdriver.lifecycle.control.checks import check
from vmdriver.lifecycle.launch.egress import check_egress
from vmdriver.model.egress import networks_of
from vmdriver.model.plan import Lease, NetworkPlan
from vmdriver.model.spec import SandboxSpec
from vmdriver.network.reach.explained import Destination, deciding, rules

ALIAS = "192.168.127.254"
LEASE = Lease(
    index=0,
    host_ip="10.0.128.1",
    guest_ip="10.0.128.2",
    mac="5e:70:e0:9c:42:95",
    tap="vmd0",
)
ADDRESSES = st.ip_addresses(v=4).map(str)
NETWORKS = st.lists(
    st.ip_addresses(v=4).map(lambda a: f"{a}/32"), max_size=3
) | st.lists(
    st.sampled_from(["10.0.0.0/8", "192.0.2.0/24", "0.0.0.0/0", "8.8.8.0/24"]),
    max_size=3,
)


def network(**changes: object) -> NetworkPlan:
    values = {
        "lease": LEASE,
        "gateway_port": 17670,
        "egress": "private-denied",
        "host_alias": ALIAS,
        "pool": "10.0.128.0/17",
        "namespace": "vmd0",
    }
    return NetworkPlan(**{**values, **changes})


def reached(plan: NetworkPlan, address: str, port: int = 443) -> bool:
    known = rules(plan, ("198.18.7.1/32",))
    return known[deciding(known, Destination(address, port))].reached


def test_an_operators_lists_are_networks_and_those_that_nobody_reaches_are_refused() -> (
    None
):
    lists = {"egress_allow": ["10.1.0.0/16", "10.1.2.0/24"], "egress_deny": ["8.8.8.8"]}
    found = config_of(lists).network
    assert (found.egress_allow, found.egress_deny) == (["10.1.0.0/16"], ["8.8.8.8/32"])
    for bad in (
        "169.254.169.254",
        "10.0.128.0/24",
        "224.0.0.0/5",
        "10.1.2.3/16",
        "::/0",
        "all",
    ):
        with pytest.raises(ConfigError, match="egress_allow|IPv4 network"):
            load(flags={"egress_allow": bad}, environment={}, file=_empty())
    assert config_of({"egress_allow": ["0.0.0.0/0"]}).network.egress_allow == [
        "0.0.0.0/0"
    ]


def _empty() -> Path:
    return Path("/dev/null")


@pytest.mark.parametrize("key", ["egress_allow", "egress_deny"])
@pytest.mark.parametrize(
    "value",
    ["10.0.0.0/8", 5, None, ["10.1.2.3/8"], [7], ["::1"], ["1.2.3.4"] * 65, {"a": 1}],
)
def test_a_request_that_names_no_networks_is_refused_with_the_field(
    key: str, value: object
) -> None:
    with pytest.raises(InvalidRequest, match=rf"template.driver_config.{key}"):
        check_egress({key: value})
    with pytest.raises(InvalidRequest, match=rf"template.driver_config.{key}"):
        check(
            SandboxSpec(id="a", name="a", image="i", driver_config={key: value}),
            SETTINGS,
        )


@given(
    st.sampled_from(["open", "private-denied", "none"]),
    NETWORKS,
    NETWORKS,
    st.none() | NETWORKS,
    NETWORKS,
    ADDRESSES | st.sampled_from(["10.9.9.9", "192.0.2.1", "8.8.8.8"]),
)
def test_no_request_reaches_more_than_the_operator_allows(
    egress: str,
    allow: list[str],
    deny: list[str],
    only: list[str] | None,
    more: list[str],
    address: str,
) -> None:
    operators = {"egress": egress, "egress_allow": networks_of(allow)}
    own = network(**operators, egress_deny=networks_of(deny))
    asked = network(
        **operators,
        egress_deny=networks_of([*deny, *more]),
        egress_only=None if only is None else networks_of(only),
    )
    assert reached(own, address) or not reached(asked, address)


@given(
    st.sampled_from(["open", "private-denied", "none"]), NETWORKS, st.none() | NETWORKS
)
def test_metadata_services_other_sandboxes_and_the_host_are_never_reached(
    egress: str, allow: list[str], only: list[str] | None
) -> None:
    said = networks_of([*allow, "169.254.169.254/32", "10.0.128.8/32", "198.18.7.1/32"])
    plan = network(
        egress=egress, egress_allow=said, egress_only=only and networks_of(only)
    )
    for address in ("169.254.169.254", "10.0.128.9", "127.0.0.1", "198.18.7.1", ALIAS):
        assert not reached(plan, address)


def test_deny_is_above_allow_and_allow_above_what_egress_says() -> None:
    plan = network(
        egress_allow=("10.9.0.0/16",), egress_deny=("10.9.1.0/24", "8.8.8.8/32")
    )
    assert reached(plan, "10.9.2.1")
    assert not reached(plan, "10.9.1.1")
    assert not reached(plan, "10.8.0.1")
    assert not reached(plan, "8.8.8.8")
    assert reached(plan, "8.8.4.4")
    assert reached(plan, ALIAS, 17670)
