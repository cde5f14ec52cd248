"""`vmdriver net`, as an operator types it, without a driver."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.driver import spec
from tests.netns.conftest import Net, run
from tests.netns.test_host_network import ALIAS, POOL, network_plan
from tests.unit.test_plan_rendering import plan as launch_plan
from vmdriver.cli.main import main
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.ipv6 import block
from vmdriver.model.plan import NetworkPlan
from vmdriver.model.record import SandboxRecord, stored_form, utc_now
from vmdriver.network.host_network import HostNetwork
from vmdriver.storage.layout import Layout

MARK = "vmdriver/test/s1"


@pytest.fixture
def state(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


def stored(layout: Layout, network: NetworkPlan | None) -> None:
    """A sandbox whose machine has, or had, that network."""
    now = utc_now()
    plan = launch_plan().model_copy(update={"network": network}) if network else None
    record = SandboxRecord(spec=spec("s1"), created_at=now, changed_at=now, plan=plan)
    files = layout.sandbox("s1")
    files.root.mkdir(mode=0o700, exist_ok=True)
    files.record.write_bytes(stored_form(record))


def machine(net: Net, layout: Layout, **changes: object) -> NetworkPlan:
    """One that runs, as far as its network goes."""
    plan = network_plan(**changes)
    plan = plan.model_copy(update={"namespace": plan.lease.tap})
    stored(layout, plan)

    async def made() -> None:
        threads = Threads("test", 2)
        host = HostNetwork(
            "test", Ownership(0, 0), threads, POOL, layout.root / "notes"
        )
        await host.make_tap(plan, MARK)
        await host.load_rules(plan, MARK)
        threads.close()

    asyncio.run(made())
    net.spaces.append(plan.lease.tap)
    return plan


def said(
    capsys: pytest.CaptureFixture[str], layout: Layout, *words: str, status: int = 0
) -> str:
    assert main(["net", "s1", *words, "--state-dir", str(layout.root)]) == status
    return capsys.readouterr().out


def test_every_rule_is_told_with_the_setting_that_says_so(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(
        net,
        state,
        dns=(ALIAS,),
        search=("corp.example",),
        egress_deny=("198.51.100.0/24",),
    )
    page = said(capsys, state)
    for text in (
        "s1 is 10.0.128.2; its rules are loaded.",
        f"It asks {ALIAS} for names, and tries corp.example.",
        f"1  reached  {ALIAS} tcp/udp port 53",
        "answered by the driver, which asks the host's own resolver (dns)",
        "refused  198.51.100.0/24\n",
        "(egress_deny)",
        "everything else is reached (egress)",
    ):
        assert text in page, page
    document = json.loads(said(capsys, state, "--json"))
    assert document["loaded"] is True
    assert [rule["setting"] for rule in document["rules"]][:3] == [
        "dns",
        "openshell_endpoint",
        "host_access",
    ]
    assert document["rules"][-1]["networks"] == ["0.0.0.0/0"]


def test_a_destination_is_tried_with_the_rules_that_are_loaded_and_from_the_host(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    space = net.space("public")
    net.link("public", "public", space, "203.0.113.1/24", "203.0.113.10/24")
    net.serve("203.0.113.10", 443, space)
    net.serve("127.0.0.1", 17670)
    machine(net, state)
    there = said(capsys, state, "203.0.113.10:443")
    assert "203.0.113.10:443/tcp: reached" in there
    assert "leaves the machine's network, for 203.0.113.10:443" in there
    assert "a connection from the host itself: it is there" in there
    away = said(capsys, state, "203.0.113.10:444", status=1)
    assert "203.0.113.10:444: Connect" in away or "refused" in away.splitlines()[-1]
    gateway = said(capsys, state, f"{ALIAS}:17670")
    assert "which is the host's 127.0.0.1" in gateway
    denied = said(capsys, state, "169.254.169.254:80", status=1)
    assert "metadata services of clouds" in denied
    assert "is refused at once" in denied
    document = json.loads(said(capsys, state, "10.1.1.1:53/udp", "--json", status=1))
    (one,) = document["tried"]
    assert (one["reached"], one["as_explained"], one["outcome"]["verdict"]) == (
        False,
        True,
        "refused",
    )


def test_rules_that_are_not_as_they_should_be_are_said_to_be_so(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = machine(net, state)
    run("ip", "netns", "exec", plan.lease.tap, "nft", "flush", "ruleset")
    assert "ITS RULES ARE NOT LOADED" in said(capsys, state)
    said(capsys, state, "10.1.1.1:80", status=1)
    out = said(capsys, state, "10.1.1.1:80/udp")
    assert "NOT WHAT ITS RULES SHOULD DO" in out


def test_when_the_hosts_half_is_gone_or_another_that_is_said_and_nothing_is_reached(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packets still leave the machine's network, and nobody translates their address."""
    space = net.space("public")
    net.link("public", "public", space, "203.0.113.1/24", "203.0.113.10/24")
    net.serve("203.0.113.10", 443, space)
    plan = machine(net, state)
    table = f"vmdriver_{plan.lease.tap}"
    assert json.loads(said(capsys, state, "--json"))["hosts_half"] == "whole"
    run("nft", "flush", "chain", "inet", table, "postrouting")
    page = said(capsys, state)
    assert "HOST'S HALF OF ITS RULES IS NOT AS THIS VERSION LOADS IT" in page
    run("nft", "delete", "table", "inet", table)
    assert "THE HOST'S HALF OF ITS RULES IS GONE" in said(capsys, state)
    away = said(capsys, state, "203.0.113.10:443", status=1)
    assert "203.0.113.10:443/tcp: refused" not in away
    assert "203.0.113.10:443/tcp: not reached" in away
    assert "it is lost there: THE HOST'S HALF" in away
    document = json.loads(said(capsys, state, "203.0.113.10:443", "--json", status=1))
    assert document["tried"][0]["lost"] is True
    document = json.loads(said(capsys, state, "--json"))
    assert (document["loaded"], document["hosts_half"]) == (False, "gone")


def test_a_machine_with_ipv6_is_explained_and_tried_and_one_without_is_told_why(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    own = block("fd00:1::/64", 0, ())
    space = net.space("public")
    net.link_ipv6("public", space, "2001:db8:1::1", "2001:db8:1::10")
    run("ip", "-6", "route", "add", "default", "via", "2001:db8:1::10")
    plan = machine(net, state, ipv6=own)
    page = said(capsys, state)
    assert f"s1 is 10.0.128.2 and {own.guest_ip}; its rules are loaded." in page
    denied = said(capsys, state, "[fd00:ec2::254]:80", status=1)
    assert "[fd00:ec2::254]:80/tcp: refused" in denied
    assert "is refused at once" in denied
    away = said(capsys, state, "[2001:db8::1]:443", status=1)
    assert "leaves the machine's network, for [2001:db8::1]:443" in away
    net.serve("2001:db8:1::10", 443, space)
    assert "]:443/tcp: reached" in said(capsys, state, "[2001:db8:1::10]:443")
    net.serve("127.0.0.1", 17670)
    for setting in ("ipv6.conf.all.forwarding", "ipv4.ip_forward"):
        run("sysctl", "-qw", f"net.{setting}=0")
    deaf = said(capsys, state, "[2001:db8:1::10]:443", status=1)
    assert "]:443/tcp: not reached" in deaf, "whatever the host itself reaches"
    assert "it is lost there: THE HOST DOES NOT FORWARD IPv4 and IPv6" in deaf
    said(capsys, state, f"{ALIAS}:17670")
    without = plan.model_copy(update={"ipv6": None, "no_ipv6": "no route"})
    stored(state, without)
    assert "it has no IPv6: no route (egress_ipv6)" in said(capsys, state)


def test_without_a_machine_the_rules_of_its_last_start_are_explained(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = network_plan(egress="none")
    stored(state, plan.model_copy(update={"namespace": plan.lease.tap}))
    assert "it has no machine now" in said(capsys, state)
    assert "not tried" in said(capsys, state, "8.8.8.8:53", status=1)


@pytest.mark.parametrize(
    "bad", ["example.org", "example.org:0", ":80", "a:65536", "a:80/icmp", "a:x"]
)
def test_what_is_no_destination_is_refused_before_anything_is_asked(
    state: Layout, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["net", "s1", bad, "--state-dir", str(state.root)]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_a_sandbox_without_a_network_and_a_name_that_nobody_knows_are_said(
    net: Net, state: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--state-dir", str(state.root)]
    assert main(["net", "s1", *words]) == 2
    stored(state, None)
    assert main(["net", "s1", *words]) == 2
    assert "has not been launched" in capsys.readouterr().err
    plan = network_plan()
    stored(state, plan.model_copy(update={"namespace": plan.lease.tap}))
    for name in ("nowhere.invalid", "a..b", "a" * 64, "x" * 5000, "\udcff"):
        assert main(["net", "s1", f"{name}:80", *words]) == 2
        assert "finds no IPv4 address" in capsys.readouterr().err
