"""What is loaded where for a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmdriver.model.plan import NetworkPlan
from vmdriver.network.rules import shared_rules as ruleset
from vmdriver.network.rules import walled_rules

Table = tuple[str, str]
"""Family and name."""


@dataclass(frozen=True)
class Rules:
    """Tables of one machine in one network namespace."""

    namespace: str | None
    """None: the host's own."""
    tables: tuple[Table, ...]
    text: str
    """What loads them: it replaces all of them at once, or changes nothing."""


def rules_of(
    plan: NetworkPlan, mark: str, host: Sequence[str], *, frames: bool = True
) -> tuple[Rules, ...]:
    """All that a machine of this plan needs, in the order in which it is loaded. `host`: the host's
    own addresses, as networks. Not `frames`: without those of a tap that is still to be moved in.
    """
    name = ruleset.table_name(plan.lease.tap)
    table = ("inet", name)
    if plan.namespace is None:
        return (Rules(None, (table,), ruleset.render(plan, mark)),)
    inside = walled_rules.inside(plan, mark, host, frames=frames)
    return (
        Rules(plan.namespace, (("netdev", name), table), inside),
        Rules(None, (table,), walled_rules.outside(plan, mark)),
    )
