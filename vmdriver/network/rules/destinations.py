"""Where packets of guests may go to, as nftables text: destinations alone, by the settings and what
nobody reaches. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmdriver.model.egress import Version, of_version
from vmdriver.model.plan import NetworkPlan

ALWAYS_DENIED = (
    "0.0.0.0/8",
    "100.100.100.200/32",  # Alibaba's metadata service
    "127.0.0.0/8",
    "168.63.129.16/32",  # Azure's platform service (WireServer)
    "169.254.0.0/16",  # link-local, and the metadata services of clouds
    "192.0.0.0/24",  # 192.0.0.192 among them, of Oracle's classic cloud
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
ALWAYS_DENIED_IPV6 = (
    # Nothing but 2000::/3 and fc00::/7 is anybody's whom a sandbox may want. Not: no address, the
    # loopback, and what leads to IPv4 past its rules (::ffff:0:0/96, NAT64's 64:ff9b::/96).
    "::/3",
    "2001::/23",  # of protocols: Teredo, which leads to IPv4, among them
    "2002::/16",  # 6to4, the same
    "4000::/2",
    "8000::/2",
    "c000::/3",
    "e000::/4",
    "f000::/5",
    "f800::/6",
    "fd00:42::42/128",  # Scaleway's metadata service
    "fd00:100::100:200/128",  # Alibaba's
    "fd00:a9fe:a9fe::1/128",  # Akamai's
    "fd00:c1::a9fe:a9fe/128",  # Oracle's
    "fd00:ec2::/32",  # Amazon's, with its names and time
    "fd20:ce::254/128",  # Google's
    "fe00::/7",  # link-local, site-local and multicast
)
PRIVATE_IPV6 = ("fc00::/7",)
_ALWAYS: Mapping[Version, tuple[str, ...]] = {4: ALWAYS_DENIED, 6: ALWAYS_DENIED_IPV6}
_PRIVATE: Mapping[Version, tuple[str, ...]] = {4: PRIVATE, 6: PRIVATE_IPV6}
_WORDS: Mapping[Version, str] = {4: "ip daddr", 6: "ip6 daddr"}


def nft_set(addresses: tuple[str, ...]) -> str:
    """As nftables writes it."""
    return "{ " + ", ".join(addresses) + " }"


def outwards(plan: NetworkPlan, version: Version = 4) -> list[tuple[str, bool]]:
    """What matches destinations of that version, and whether they are reached: the first that
    matches decides, the last one matches all. Of version 6 only for a plan that has that.
    """
    pool, private = _of_the_host(plan, version)
    steps = [(_to(version, pool), False), (_to(version, _ALWAYS[version]), False)]
    if deny := of_version(plan.egress_deny, version):
        steps.append((_to(version, deny), False))
    if plan.egress_only is not None:
        only = of_version(plan.egress_only, version)
        if not only:
            return [*steps, ("", False)]
        steps.append((_to(version, only, "!= "), False))
    if allow := of_version(plan.egress_allow, version):
        steps.append((_to(version, allow), True))
    if plan.egress == "private-denied":
        denied = [_PRIVATE[version], *((network,) for network in private)]
        steps += [(_to(version, networks), False) for networks in denied]
    return [*steps, ("", plan.egress != "none")]


def _of_the_host(
    plan: NetworkPlan, version: Version
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sandboxes' own networks, and others that this host has a route to."""
    if version == 4 or plan.ipv6 is None:
        return (plan.pool,), plan.denied_networks
    return (plan.ipv6.pool,), plan.ipv6.denied_networks


def _to(version: Version, networks: tuple[str, ...], how: str = "") -> str:
    return f"{_WORDS[version]} {how}{nft_set(networks)} "
