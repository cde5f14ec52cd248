"""A sandbox's firewall table as nftables text. Pure; the golden tests pin it, the netns
tests run it.

What it does, chain by chain:
    raw          the guest sends from its own MAC and address, in IPv4, or not at all
    to_gateway   the gateway's port at the tap's host address leads to the gateway on
                 the host's loopback
    input        of the host the guest reaches that port, and nothing else
    output       the host itself sends the guest only answers
    forward      outwards as `egress` says, never to other sandboxes or link-local;
                 inwards only answers
    postrouting  what leaves does so under the host's address
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


def table_name(tap: str) -> str:
    """The table's name; interface names of ours are made of letters and digits."""
    return f"vmdriver_{tap}"


def _set(addresses: tuple[str, ...]) -> str:
    return "{ " + ", ".join(addresses) + " }"


def _dnat_chain(plan: NetworkPlan) -> list[str]:
    if plan.gateway_address is not None:
        return []
    tap, host, port = plan.lease.tap, plan.lease.host_ip, plan.gateway_port
    return [
        "chain to_gateway {",
        "type nat hook prerouting priority dstnat; policy accept;",
        f'iifname "{tap}" ip daddr {host} tcp dport {port} dnat ip to 127.0.0.1:{port}',
        "}",
    ]


def _input_chain(plan: NetworkPlan) -> list[str]:
    tap, port = plan.lease.tap, plan.gateway_port
    if plan.gateway_address is None:
        # Only what to_gateway let in: 127.0.0.1 itself, asked for by the guest, is not.
        reachable = (
            f'iifname "{tap}" ct status dnat '
            f"ct original ip daddr {plan.lease.host_ip} tcp dport {port} accept"
        )
    else:
        reachable = (
            f'iifname "{tap}" ip daddr {plan.gateway_address} tcp dport {port} accept'
        )
    return [
        "chain input {",
        "type filter hook input priority filter; policy accept;",
        f'iifname "{tap}" ct state established,related accept',
        reachable,
        f'iifname "{tap}" drop',
        "}",
    ]


def _egress_rules(plan: NetworkPlan) -> list[str]:
    tap = plan.lease.tap
    rules = []
    if plan.gateway_address is not None:
        rules.append(
            f'iifname "{tap}" ip daddr {plan.gateway_address} tcp dport {plan.gateway_port} accept'
        )
    for server in plan.dns:
        rules.append(
            f'iifname "{tap}" ip daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept'
        )
    rules.append(f'iifname "{tap}" ip daddr {_set((plan.pool,))} drop')
    rules.append(f'iifname "{tap}" ip daddr {_set(ALWAYS_DENIED)} drop')
    if plan.egress == "private-denied":
        rules.append(f'iifname "{tap}" ip daddr {_set(PRIVATE)} drop')
        rules += [
            f'iifname "{tap}" ip daddr {network} drop'
            for network in plan.denied_networks
        ]
    rules.append(f'iifname "{tap}" ' + ("drop" if plan.egress == "none" else "accept"))
    return rules


def _forward_chain(plan: NetworkPlan) -> list[str]:
    tap = plan.lease.tap
    return [
        "chain forward {",
        "type filter hook forward priority filter; policy accept;",
        f'oifname "{tap}" ct state established,related accept',
        f'oifname "{tap}" drop',
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


def _postrouting_chain(plan: NetworkPlan) -> list[str]:
    return [
        "chain postrouting {",
        "type nat hook postrouting priority srcnat; policy accept;",
        f'ip saddr {plan.lease.guest_ip} oifname != "{plan.lease.tap}" masquerade',
        "}",
    ]


def render(plan: NetworkPlan, mark: str) -> str:
    """Replace the table in one transaction. Adding before deleting makes the delete
    work whether or not it was there.
    """
    name = table_name(plan.lease.tap)
    chains = (
        _raw_chain,
        _dnat_chain,
        _input_chain,
        _output_chain,
        _forward_chain,
        _postrouting_chain,
    )
    body = [line for chain in chains for line in chain(plan)]
    return "\n".join(
        [
            f"add table inet {name}",
            f"delete table inet {name}",
            f"table inet {name} {{",
            f'comment "{mark}"',
            *body,
            "}",
            "",
        ]
    )


def render_removal(tap: str) -> str:
    """Remove the table, there or not."""
    name = table_name(tap)
    return f"add table inet {name}\ndelete table inet {name}\n"
