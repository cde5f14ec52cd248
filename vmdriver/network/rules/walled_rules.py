"""The rules of a machine with a network namespace of its own, as nftables text. Pure; the golden
tests pin it, the netns tests run it.

What may leave is decided by `inside`, in the machine's namespace, out of reach of whatever empties
the host's tables:
    frames       the guest sends IPv4 from its own MAC and address, and asks for its gateway's
                 MAC; every other frame is dropped without a word
    to_host      the ports that host_access names, at the address that the guest knows the host
                 as, become the host's end of the pair; the gateway's among them if it is there
    forward      outwards as `egress` and its lists say, never to other machines, to the host or
                 link-local; inwards only answers
    names        questions for names at that address, where the guest has no other server, become
                 the namespace's own; not too many at once
    connect      no more connections than the machine may have, nor too fast
    input        the namespace itself is nothing to connect to
    output       nor does anything connect from it, a QEMU that was taken over among it
    refuse       whoever may not is told so at once: a reset for TCP, ICMP for the rest

`outside`, in the host's, only translates addresses. Without it nothing works that was
forbidden, and what was allowed does not work:
    to_host      what comes to the host's end of the pair goes to its loopback
    postrouting  what leaves does so under the host's address
    input        of the host nothing else is reached (also at an address that it has only now)
    count        the host follows no more connections for the machine than it may have
    brief        the host forgets soon what has ended: by `count` it is not counted
"""

from __future__ import annotations

from collections.abc import Sequence

from vmdriver.model.plan import NetworkPlan
from vmdriver.network.rules.shared_rules import (
    LOOPBACK,
    REFUSE,
    host_services,
    input_chain,
    nft_set,
    outwards,
    postrouting_chain,
    replaced,
    table_name,
    to_host_chain,
)

_BRIEF = (
    "ct timeout ended {",
    "protocol tcp; l3proto ip; policy = { time_wait: 5, close: 2 }",
    "}",
)
_ASKED_EACH_S, _ASKED_AT_ONCE = 64, 256
"""Questions for names of one machine, and streams that it begins for them; what is more is asked
again by itself.
"""
_PACKETS_EACH_S, _PACKETS_AT_ONCE = 512, 1024
"""In such streams: each wakes the driver, also one with a single byte in it."""
_FOR_NAMES = "meta l4proto { tcp, udp } th dport 53"
_NEW_EACH_S, _NEW_AT_ONCE = 8, 4
"""A machine may begin so much of its connections in a second, and at once: 1/8, 1/4."""


def _frames(plan: NetworkPlan, mark: str) -> list[str]:
    lease = plan.lease
    arp = (
        f"arp saddr ether {lease.mac} arp saddr ip {lease.guest_ip} "
        f"arp daddr ip {lease.host_ip}"
    )
    chain = [
        "chain frames {",
        f'type filter hook ingress device "{lease.tap}" priority filter; policy drop;',
        f"ether saddr != {lease.mac} drop",
        # As it is in the frame: behind a VLAN tag there is another type.
        f"ether type ip ip saddr {lease.guest_ip} accept",
        f"ether type arp arp operation request {arp} accept",
        "}",
    ]
    return replaced("netdev", table_name(lease.tap), mark, chain)


def _brief(tap: str = "") -> list[str]:
    where = f'iifname "{tap}" ' if tap else ""
    return [
        "chain brief {",
        "type filter hook prerouting priority mangle; policy accept;",
        f'{where}meta l4proto tcp ct timeout set "ended"',
        "}",
    ]


def _connect(plan: NetworkPlan) -> list[str]:
    most = plan.max_connections
    rules = []
    if most is not None:
        rate, burst = most // _NEW_EACH_S, most // _NEW_AT_ONCE
        rules = [
            # What has ended is followed for a while, and not counted.
            f"ct state new limit rate over {rate}/second burst {burst} packets drop",
            f"ct state new ct count over {most} drop",
        ]
    return ["chain connect {", *rules, "accept", "}"]


def _forward(plan: NetworkPlan) -> list[str]:
    services, lease = host_services(plan), plan.lease
    rules = []
    if services is not None:
        rules.append(
            f"ip daddr {lease.uplink_ip} ct status dnat "
            f"ct original ip daddr {plan.host_address} {services} goto connect"
        )
    if plan.host_alias is not None:
        rules.append(f"ip daddr {plan.host_alias} goto refuse")
    if plan.gateway_address is not None:
        rules.append(
            f"ip daddr {plan.gateway_address} tcp dport {plan.gateway_port} goto connect"
        )
    rules.append("ip daddr @host goto refuse")
    rules += [
        f"ip daddr {server} {_FOR_NAMES} goto connect"
        for server in plan.servers_elsewhere
    ]
    ends = {True: "goto connect", False: "goto refuse"}
    rules += [f"{to}{ends[reached]}" for to, reached in outwards(plan)]
    return [
        "chain forward {",
        "type filter hook forward priority filter; policy drop;",
        "ct state invalid drop",
        "ct state established,related accept",
        f'iifname != "{lease.tap}" goto refuse',
        *rules,
        "}",
    ]


def _names(plan: NetworkPlan) -> list[str]:
    if not plan.asks_host:
        return []
    asked = (
        f"limit rate over {_ASKED_EACH_S}/second burst {_ASKED_AT_ONCE} packets drop"
    )
    sent = f"limit rate over {_PACKETS_EACH_S}/second burst {_PACKETS_AT_ONCE} packets drop"
    return [
        "chain names {",
        f"meta l4proto udp {asked}",
        f"meta l4proto tcp ct state new {asked}",
        f"meta l4proto tcp {sent}",
        "goto connect",
        "}",
    ]


def _to_host(plan: NetworkPlan) -> list[str]:
    lease, asked = plan.lease, plan.host_address
    names = (
        f'iifname "{lease.tap}" ip daddr {asked} {_FOR_NAMES} dnat ip to {lease.host_ip}',
    )
    first = names if plan.asks_host else ()
    return to_host_chain(plan, asked, lease.uplink_ip, first)


def _input(plan: NetworkPlan) -> list[str]:
    lease, names = plan.lease, []
    if plan.asks_host:
        asked = f"ip daddr {lease.host_ip} ct status dnat ct original ip daddr"
        names = [
            f'iifname "{lease.tap}" {asked} {plan.host_address} {_FOR_NAMES} goto names'
        ]
    return [
        "chain input {",
        "type filter hook input priority filter; policy drop;",
        *names,
        f'iifname "{lease.tap}" goto refuse',
        "}",
    ]


def _output(plan: NetworkPlan) -> list[str]:
    # Who asks while no driver runs asks again by itself, and is answered by the next one.
    unheard = ["icmp type destination-unreachable icmp code port-unreachable drop"]
    return [
        "chain output {",
        "type filter hook output priority filter; policy drop;",
        *(unheard if plan.asks_host else []),
        "ct state established,related accept",
        "}",
    ]


def inside(
    plan: NetworkPlan, mark: str, host: Sequence[str], *, frames: bool = True
) -> str:
    """For the machine's namespace: replace its tables in one transaction. `host`: the host's own
    addresses, as networks. `frames`: the tap is there, whose frames the first chain looks at.
    """
    tap = plan.lease.tap
    elements = [f"elements = {nft_set(tuple(host))}"] if host else []
    body = [
        *_BRIEF,
        *("set host {", "type ipv4_addr; flags interval; auto-merge", *elements, "}"),
        *REFUSE,
        *_connect(plan),
        *_brief(),
        *_names(plan),
        *_to_host(plan),
        *_input(plan),
        *_output(plan),
        *_forward(plan),
    ]
    table = replaced("inet", table_name(tap), mark, body)
    first = _frames(plan, mark) if frames else []
    return "\n".join([*first, *table, ""])


def _count(plan: NetworkPlan) -> list[str]:
    if plan.max_connections is None:
        return []
    return [
        "chain count {",
        "type filter hook prerouting priority dstnat + 10; policy accept;",
        (
            f'iifname "{plan.lease.tap}" ct state new '
            f"ct count over {plan.max_connections} drop"
        ),
        "}",
    ]


def outside(plan: NetworkPlan, mark: str) -> str:
    """For the host's namespace: replace the machine's table in one transaction."""
    lease = plan.lease
    body = [
        *_BRIEF,
        *REFUSE,
        *_brief(lease.tap),
        *to_host_chain(plan, lease.uplink_ip, LOOPBACK),
        *_count(plan),
        *input_chain(plan, lease.uplink_ip),
        *postrouting_chain(plan),
    ]
    return "\n".join([*replaced("inet", table_name(lease.tap), mark, body), ""])
