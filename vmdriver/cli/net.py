"""vmdriver net: what a sandbox reaches, and why. Works without a running driver."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from vmdriver.cli.files import files_of
from vmdriver.cli.terminal import print_json
from vmdriver.config import Loaded
from vmdriver.errors import InvalidRequest, NotFound
from vmdriver.host.confined import netns
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.guard.surroundings import own_addresses
from vmdriver.network.reach.explained import (
    Destination,
    Protocol,
    Rule,
    deciding,
    rules,
)
from vmdriver.network.reach.replica import Outcome, live_rules, outcomes
from vmdriver.network.rules.shared_rules import LOOPBACK, table_name
from vmdriver.storage.sandboxes.records import read_record

_MOST_ADDRESSES = 4
_PATIENCE_S = 4.0


@dataclass(frozen=True)
class Network:
    """Of one sandbox, as far as it is known here. `loaded`: what the kernel has, None where there
    is no machine to have it for.
    """

    sandbox: str
    plan: NetworkPlan
    known: tuple[Rule, ...]
    loaded: str | None

    @property
    def whole(self) -> bool:
        """Whether there are rules in its namespace at all."""
        return (
            self.loaded is not None and table_name(self.plan.lease.tap) in self.loaded
        )


@dataclass(frozen=True)
class Tried:
    """One address of a destination. `outcome`: the kernel's, None where it could not be asked.
    `host`: what came of a connection from the host itself to where the packet leads; "" it is
    there, None: none was tried.
    """

    to: Destination
    number: int
    rule: Rule
    outcome: Outcome | None
    host: str | None

    @property
    def reached(self) -> bool:
        """As the rules that are loaded say, or those that would be, and the host's connection."""
        passes = self.rule.reached if self.outcome is None else self.outcome.reached
        return passes and not self.host


def net(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """Explain all rules, or try a destination: 1 if that is not reached."""
    wanted = _destination(arguments.destination) if arguments.destination else None
    plan = read_record(files_of(loaded, arguments.id).root).plan
    if plan is None:
        raise NotFound(
            f"sandbox {arguments.id} has not been launched: it has no network yet",
            resolution="see what it waits for: vmdriver inspect",
        )
    known = asyncio.run(_known(arguments.id, plan.network))
    if wanted is None:
        _print_rules(known, as_json=arguments.json)
        return 0
    tried = asyncio.run(_tried(known, *wanted))
    _print_tried(known, arguments.destination, tried, as_json=arguments.json)
    return 0 if any(one.reached for one in tried) else 1


def _destination(text: str) -> tuple[str, Destination]:
    """The name, and its port with an address that is still to be found. InvalidRequest."""
    host, _, port = text.rpartition(":")
    number, _, protocol = port.partition("/")
    right = number.isascii() and number.isdecimal() and 0 < int(number) < 2**16
    if not host or not right or protocol not in {"", "tcp", "udp"}:
        raise InvalidRequest(
            "HOST:PORT", f"{text!r} is none, like example.org:443 or 192.0.2.1:53/udp"
        )
    kind: Protocol = "udp" if protocol == "udp" else "tcp"
    return host, Destination("0.0.0.0", int(number), kind)  # noqa: S104 - not bound


async def _known(sandbox: str, plan: NetworkPlan) -> Network:
    host = await own_addresses(ipaddress.IPv4Network(plan.pool))
    there = plan.namespace is not None and netns.is_there(plan.namespace)
    loaded = await live_rules(plan.namespace) if there and plan.namespace else None
    return Network(sandbox, plan, rules(plan, host), loaded)


async def _tried(known: Network, name: str, port: Destination) -> list[Tried]:
    """NotFound: the host knows no address of that name."""
    addresses = await _addresses(name)
    wanted = [Destination(a, port.port, port.protocol) for a in addresses]
    found: Sequence[Outcome | None] = [None] * len(wanted)
    if known.loaded is not None:
        found = await outcomes(known.plan, known.loaded, wanted)
    tried = []
    for to, outcome in zip(wanted, found, strict=True):
        place = deciding(known.known, to)
        host = await _from_the_host(known.plan, to, outcome)
        tried.append(Tried(to, place + 1, known.known[place], outcome, host))
    return tried


async def _addresses(name: str) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            name, None, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:  # the latter: what can be no name
        why = error.strerror if isinstance(error, OSError) else "it is no name"
        raise NotFound(
            f"the host finds no IPv4 address for {name}: {why}",
            resolution="guests have no IPv6; which name servers they ask: vmdriver net ID",
        ) from error
    every = dict.fromkeys(str(address[0]) for *_, address in found)
    return list(every)[:_MOST_ADDRESSES]


async def _from_the_host(
    plan: NetworkPlan, to: Destination, outcome: Outcome | None
) -> str | None:
    if to.protocol != "tcp" or outcome is None or outcome.leads_to is None:
        return None
    address, port = outcome.leads_to
    if address == plan.lease.uplink_ip:
        address = LOOPBACK
    try:
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return f"nothing came from {address}:{port} within {_PATIENCE_S:.0f} s"
    except OSError as error:
        return f"{address}:{port}: {error.strerror or error}"
    writer.transport.abort()
    return ""


# --- in words


def _print_rules(known: Network, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "sandbox": known.sandbox,
                "guest_ip": known.plan.lease.guest_ip,
                "namespace": known.plan.namespace,
                "loaded": known.whole,
                "name_servers": list(known.plan.dns),
                "search": list(known.plan.search),
                "rules": [asdict(rule) for rule in known.known],
            }
        )
        return
    print("\n".join(_page(known)))


def _page(known: Network) -> Iterator[str]:
    plan = known.plan
    yield f"{known.sandbox} is {plan.lease.guest_ip}; {_state(known)}."
    names = ", ".join(plan.dns) or "nobody"
    search = f", and tries {', '.join(plan.search)}" if plan.search else ""
    yield f"It asks {names} for names{search}."
    yield "The first rule that a destination is in decides:"
    for number, rule in enumerate(known.known, 1):
        yield f"{number:3}  {_word(rule.reached)}  {_where(rule)}"
        yield f"              {rule.sentence}{_setting(rule)}"
    yield "Whatever is not plain IPv4 from its own address is dropped: it has no IPv6."
    yield "From outside nothing reaches it but answers."
    if plan.max_connections is not None:
        yield f"It may have {plan.max_connections} connections at a time (max_connections)."


def _state(known: Network) -> str:
    if known.plan.namespace is None:
        return "its machine has no network namespace of its own: these are its rules"
    if known.loaded is None:
        return "it has no machine now: these are the rules of its last start"
    if not known.whole:
        return "ITS RULES ARE NOT LOADED: nothing passes until the driver has restored them"
    return "its rules are loaded"


def _word(reached: bool) -> str:
    return "reached" if reached else "refused"


def _where(rule: Rule) -> str:
    where = ", ".join(rule.networks)
    if rule.others:
        where = f"all but {where}" if where else "all"
    kinds = "/".join(rule.protocols) if len(rule.protocols) == 1 or rule.ports else ""
    ports = f" port {', '.join(map(str, rule.ports))}" if rule.ports else ""
    return f"{where} {kinds}{ports}".rstrip()


def _setting(rule: Rule) -> str:
    return f" ({rule.setting})" if rule.setting else ""


def _print_tried(
    known: Network, asked: str, tried: Sequence[Tried], *, as_json: bool
) -> None:
    if as_json:
        found = [
            asdict(one) | {"reached": one.reached, "as_explained": _agrees(one)}
            for one in tried
        ]
        document = {"sandbox": known.sandbox, "destination": asked, "tried": found}
        print_json(document)
        return
    for one in tried:
        print(f"{one.to}: {_word(one.reached)}")
        text = f"{_word(one.rule.reached)}: {one.rule.sentence}{_setting(one.rule)}"
        print(f"  rule {one.number}, {text}")
        print(f"  {_kernels_word(known, one)}")
        if one.host is not None:
            there = "it is there" if not one.host else one.host
            print(f"  a connection from the host itself: {there}")


def _agrees(one: Tried) -> bool | None:
    """Whether the kernel does as the rules are explained; None: it was not asked."""
    return None if one.outcome is None else one.outcome.reached == one.rule.reached


def _kernels_word(known: Network, one: Tried) -> str:
    if one.outcome is None:
        return f"not tried: {_state(known)}"
    what = {
        "leaves": "leaves the machine's network",
        "answered": "is answered within it",
        "refused": "is refused at once",
        "dropped": "is dropped without a word",
    }[one.outcome.verdict]
    leads = one.outcome.leads_to
    where = f", for {leads[0]}:{leads[1]}" if leads is not None else ""
    if leads is not None and leads[0] == known.plan.lease.uplink_ip:
        where += f", which is the host's {LOOPBACK}"
    odd = "" if _agrees(one) else "; THAT IS NOT WHAT ITS RULES SHOULD DO"
    return f"tried with the rules that are loaded: a packet of the guest's {what}{where}{odd}"
