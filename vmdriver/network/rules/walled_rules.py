"""The rules of a machine with a network namespace of its own, as nftables text. Pure; the golden
tests pin it, the netns tests run it.

What may leave is decided by `inside`, in the machine's namespace, out of reach of whatever empties
the host's tables:
    frames       the guest sends IPv4 from its own MAC and address, and asks for its gateway's
                 MAC; IPv6 from its own address where it has one, to nobody on the link: there is
                 nothing to ask for; every other frame is dropped without a word
    to_host      the ports that host_access names, at the address that the guest knows the host
                 as, become the host's end of the pair; the gateway's among them if it is there
    forward      outwards as `egress` and its lists say, never to other machines, to the host or
                 link-local; inwards only answers
    forward6     the same of IPv6, for a machine that has it
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
    source6      IPv6 comes from the machine's address: for IPv4 the kernel sees to that (rp_filter)
"""

from __future__ import annotations

from collections.abc import Sequence

from vmdriver.model.egress import of_version
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.rules.destinations import nft_set, outwards
from vmdriver.network.rules.shared_rules import (
    LOOPBACK,
    REFUSE,
    host_services,
    input_chain,
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
_BRIEF_IPV6 = (
    "ct timeout ended6 {",
    "protocol tcp; l3proto ip6; policy = { time_wait: 5, close: 2 }",
    "}",
)
_ASKED_EACH_S, _ASKED_AT_ONCE = 64, 256
"""Questions for names of one machine, and streams that it begins for them; what is more is asked
again by itself.
"""
_PACKETS_EACH_S, _PACKETS_AT_ONCE = 512, 1024
"""In such streams: each wakes the driver, also one with a single byte in it."""
_FOR_NAMES = "meta l4proto { tcp, udp } th dport 53"
_ENDS = {True: "goto connect", False: "goto refuse"}
_ODD_IPV6 = (
    # Words between neighbours are not followed as connections, and would leave as they are.
    "meta nfproto ipv6 ct state untracked drop",
    # A packet that goes on from where it arrives: to where no rule has looked.
    "exthdr rt exists drop",
)
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
        *_frames_ipv6(plan),
        "}",
    ]
    return replaced("netdev", table_name(lease.tap), mark, chain)


def _frames_ipv6(plan: NetworkPlan) -> list[str]:
    if plan.ipv6 is None:
        return []
    to = "ip6 daddr != { fe80::/10, ff00::/8 }"
    return [f"ether type ip6 ip6 saddr {plan.ipv6.guest_ip} {to} accept"]


def _timeouts(plan: NetworkPlan) -> tuple[str, ...]:
    return _BRIEF if plan.ipv6 is None else (*_BRIEF, *_BRIEF_IPV6)


def _brief(plan: NetworkPlan, tap: str = "") -> list[str]:
    where = f'iifname "{tap}" ' if tap else ""
    of_tcp = "meta l4proto tcp ct timeout set"
    kinds = [("", "ended")]
    if plan.ipv6 is not None:
        kinds = [("meta nfproto ipv4 ", "ended"), ("meta nfproto ipv6 ", "ended6")]
    return [
        "chain brief {",
        "type filter hook prerouting priority mangle; policy accept;",
        *(f'{where}{kind}{of_tcp} "{name}"' for kind, name in kinds),
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
    rules += [f"{to}{_ENDS[reached]}" for to, reached in outwards(plan)]
    six = plan.ipv6 is not None
    return [
        *_forward_ipv6(plan),
        "chain forward {",
        "type filter hook forward priority filter; policy drop;",
        "ct state invalid drop",
        *(_ODD_IPV6 if six else ()),
        "ct state established,related accept",
        f'iifname != "{lease.tap}" goto refuse',
        *(("meta nfproto ipv6 goto forward6",) if six else ()),
        *rules,
        "}",
    ]


def _forward_ipv6(plan: NetworkPlan) -> list[str]:
    if plan.ipv6 is None:
        return []
    rules = [f"{to}{_ENDS[reached]}" for to, reached in outwards(plan, 6)]
    return ["chain forward6 {", "ip6 daddr @host6 goto refuse", *rules, "}"]


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


def _host_sets(plan: NetworkPlan, host: Sequence[str]) -> list[str]:
    return [
        *_set("host", "ipv4_addr", of_version(host, 4)),
        *(_set("host6", "ipv6_addr", of_version(host, 6)) if plan.ipv6 else ()),
    ]


def _set(name: str, kind: str, networks: tuple[str, ...]) -> list[str]:
    elements = [f"elements = {nft_set(networks)}"] if networks else []
    kinds = f"type {kind}; flags interval; auto-merge"
    return [f"set {name} {{", kinds, *elements, "}"]


def inside(
    plan: NetworkPlan, mark: str, host: Sequence[str], *, frames: bool = True
) -> str:
    """For the machine's namespace: replace its tables in one transaction. `host`: the host's own
    addresses, as networks. `frames`: the tap is there, whose frames the first chain looks at.
    """
    tap = plan.lease.tap
    body = [
        *_timeouts(plan),
        *_host_sets(plan, host),
        *REFUSE,
        *_connect(plan),
        *_brief(plan),
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


def _source_ipv6(plan: NetworkPlan) -> list[str]:
    if plan.ipv6 is None:
        return []
    from_it = f'iifname "{plan.lease.tap}" ip6 saddr != {plan.ipv6.guest_ip}'
    return [
        "chain source6 {",
        "type filter hook prerouting priority raw; policy accept;",
        f"{from_it} drop",
        "}",
    ]


def outside(plan: NetworkPlan, mark: str) -> str:
    """For the host's namespace: replace the machine's table in one transaction."""
    lease = plan.lease
    body = [
        *_timeouts(plan),
        *REFUSE,
        *_source_ipv6(plan),
        *_brief(plan, lease.tap),
        *to_host_chain(plan, lease.uplink_ip, LOOPBACK),
        *_count(plan),
        *input_chain(plan, lease.uplink_ip),
        *postrouting_chain(plan),
    ]
    return "\n".join([*replaced("inet", table_name(lease.tap), mark, body), ""])
