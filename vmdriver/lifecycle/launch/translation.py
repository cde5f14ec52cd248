"""How much translated code QEMU may keep where no processor runs the guest's own (TCG). Pure."""

from __future__ import annotations

from vmdriver.model.plan import LaunchPlan

MOST_MIB = 64
"""DECISIONS.md has what was measured. Of it only what is used takes memory; when it is full, all of
it is translated anew.
"""


def bounded(plan: LaunchPlan) -> LaunchPlan:
    """The same machine with the bound of now, whatever it had before: also one that goes on from
    memory of an earlier driver's. The guest knows nothing of it.
    """
    most = MOST_MIB if plan.accelerator == "tcg" else None
    return plan.model_copy(update={"translated_mib": most})
