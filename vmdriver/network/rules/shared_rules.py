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
from vmdriver.network.rules.destinations import outwards

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
    ways = [f"ip saddr {plan.lease.guest_ip}"]
    if plan.ipv6 is not None:
        ways.append(f"ip6 saddr {plan.ipv6.guest_ip}")
    out = f'oifname != "{plan.lease.tap}" masquerade'
    return [
        "chain postrouting {",
        "type nat hook postrouting priority srcnat; policy accept;",
        *(f"{way} {out}" for way in ways),
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
