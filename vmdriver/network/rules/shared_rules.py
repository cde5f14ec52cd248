"""The firewall table of a machine whose tap is in the host's own network namespace, as nftables
text, and what it shares with the rules of the others (walled_rules). Pure; the golden tests pin
it, the netns tests run it.

What it does, chain by chain:
    raw          the guest sends from its own MAC and address, in IPv4, or not at all:
                 what is forged is dropped without a word
    to_host      the ports of the host's loopback that host_access names, at the address
                 that the guest knows the host as; the gateway's among them if it is there
    not_host     its other ports lead nowhere
    input        of the host the guest reaches these, and nothing else
    output       the host itself sends the guest only answers
    forward      outwards as `egress` and its lists say, never to other sandboxes or link-local;
                 inwards only answers
    postrouting  what leaves does so under the host's address
    refuse       whoever may not is told so at once: a reset for TCP, ICMP for the rest
"""

from __future__ import annotations

from vmdriver.model.plan import NetworkPlan

ALWAYS_DENIED = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local, and the metadata services of clouds
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
PRIVATE = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
)
LOOPBACK = "127.0.0.1"
REFUSE = (
    "chain refuse {",
    "meta l4proto tcp reject with tcp reset",
    "reject with icmpx type admin-prohibited",
    "}",
)


def table_name(tap: str) -> str:
    """The table's name; interface names of ours are made of letters and digits."""
    return f"vmdriver_{tap}"


def nft_set(addresses: tuple[str, ...]) -> str:
    """As nftables writes it."""
    return "{ " + ", ".join(addresses) + " }"


def host_services(plan: NetworkPlan) -> str | None:
    """What matches the TCP ports that lead to the host's loopback; None: none does."""
    if plan.host_access == "all":
        return "meta l4proto tcp"
    ports = ", ".join(str(port) for port in plan.host_ports)
    return f"tcp dport {{ {ports} }}" if ports else None


def to_host_chain(
    plan: NetworkPlan, asked: str, leads_to: str, first: tuple[str, ...] = ()
) -> list[str]:
    """The services of the host, asked for by the guest at the one address, at the other; behind
    rules that are `first`.
    """
    services, tap = host_services(plan), plan.lease.tap
    rules = list(first)
    if services is not None:
        rules.append(
            f'iifname "{tap}" ip daddr {asked} {services} dnat ip to {leads_to}'
        )
    if not rules:
        return []
    return [
        "chain to_host {",
        "type nat hook prerouting priority dstnat; policy accept;",
        *rules,
        "}",
    ]


def _not_host_chain(plan: NetworkPlan) -> list[str]:
    """After to_host, and before the host's routes: it may have none to that address."""
    if plan.host_alias is None:
        return []  # the tap's own address: input has it
    return [
        "chain not_host {",
        "type filter hook prerouting priority dstnat + 10; policy accept;",
        f'iifname "{plan.lease.tap}" ip daddr {plan.host_alias} goto refuse',
        "}",
    ]


def input_chain(plan: NetworkPlan, asked: str) -> list[str]:
    """Of the host the guest reaches what `to_host_chain` lets in, where it was asked for at that
    address, and the gateway.
    """
    tap, services = plan.lease.tap, host_services(plan)
    reachable = []
    if services is not None:
        # Only what to_host let in: 127.0.0.1 itself, asked for by the guest, is not.
        reachable.append(
            f'iifname "{tap}" ip daddr 127.0.0.1 ct status dnat '
            f"ct original ip daddr {asked} {services} accept"
        )
    if plan.gateway_address is not None:
        reachable.append(
            f'iifname "{tap}" ip daddr {plan.gateway_address} tcp dport {plan.gateway_port} accept'
        )
    return [
        "chain input {",
        "type filter hook input priority filter; policy accept;",
        f'iifname "{tap}" ct state established,related accept',
        *reachable,
        f'iifname "{tap}" goto refuse',
        "}",
    ]


def outwards(plan: NetworkPlan) -> list[tuple[str, bool]]:
    """What matches destinations, and whether they are reached: the first that matches decides, the
    last one matches all.
    """
    steps = [(_to((plan.pool,)), False), (_to(ALWAYS_DENIED), False)]
    if plan.egress_deny:
        steps.append((_to(plan.egress_deny), False))
    if plan.egress_only == ():
        return [*steps, ("", False)]
    if plan.egress_only is not None:
        steps.append((f"ip daddr != {nft_set(plan.egress_only)} ", False))
    if plan.egress_allow:
        steps.append((_to(plan.egress_allow), True))
    if plan.egress == "private-denied":
        private = [PRIVATE, *((network,) for network in plan.denied_networks)]
        steps += [(_to(networks), False) for networks in private]
    return [*steps, ("", plan.egress != "none")]


def _to(networks: tuple[str, ...]) -> str:
    return f"ip daddr {nft_set(networks)} "


def _egress_rules(plan: NetworkPlan) -> list[str]:
    tap = plan.lease.tap
    rules = []
    if plan.gateway_address is not None:
        rules.append(
            f'iifname "{tap}" ip daddr {plan.gateway_address} tcp dport {plan.gateway_port} accept'
        )
    for server in plan.servers_elsewhere:
        rules.append(
            f'iifname "{tap}" ip daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept'
        )
    ends = {True: "accept", False: "goto refuse"}
    rules += [f'iifname "{tap}" {to}{ends[reached]}' for to, reached in outwards(plan)]
    return rules


def _forward_chain(plan: NetworkPlan) -> list[str]:
    tap = plan.lease.tap
    return [
        "chain forward {",
        "type filter hook forward priority filter; policy accept;",
        f'oifname "{tap}" ct state established,related accept',
        f'oifname "{tap}" goto refuse',
        f'iifname "{tap}" ct state established,related accept',
        *_egress_rules(plan),
        "}",
    ]


def _output_chain(plan: NetworkPlan) -> list[str]:
    tap = plan.lease.tap
    return [
        "chain output {",
        "type filter hook output priority filter; policy accept;",
        f'oifname "{tap}" ct state established,related accept',
        f'oifname "{tap}" drop',
        "}",
    ]


def _raw_chain(plan: NetworkPlan) -> list[str]:
    tap, lease = plan.lease.tap, plan.lease
    return [
        "chain raw {",
        "type filter hook prerouting priority raw; policy accept;",
        f'iifname "{tap}" meta nfproto ipv6 drop',
        f'iifname "{tap}" ether saddr != {lease.mac} drop',
        f'iifname "{tap}" ip saddr != {lease.guest_ip} drop',
        "}",
    ]


def postrouting_chain(plan: NetworkPlan) -> list[str]:
    """What leaves does so under the host's address."""
    return [
        "chain postrouting {",
        "type nat hook postrouting priority srcnat; policy accept;",
        f'ip saddr {plan.lease.guest_ip} oifname != "{plan.lease.tap}" masquerade',
        "}",
    ]


def replaced(family: str, name: str, mark: str, body: list[str]) -> list[str]:
    """Lines that replace a table in one transaction. Adding before deleting makes the delete
    work whether or not it was there.
    """
    return [
        f"add table {family} {name}",
        f"delete table {family} {name}",
        f"table {family} {name} {{",
        f'comment "{mark}"',
        *body,
        "}",
    ]


def render(plan: NetworkPlan, mark: str) -> str:
    """Replace the table."""
    asked = plan.host_address
    body = [
        *REFUSE,
        *_raw_chain(plan),
        *to_host_chain(plan, asked, LOOPBACK),
        *_not_host_chain(plan),
        *input_chain(plan, asked),
        *_output_chain(plan),
        *_forward_chain(plan),
        *postrouting_chain(plan),
    ]
    name = table_name(plan.lease.tap)
    return "\n".join([*replaced("inet", name, mark, body), ""])


def render_removal(tap: str) -> str:
    """Remove the table, there or not."""
    name = table_name(tap)
    return f"add table inet {name}\ndelete table inet {name}\n"
