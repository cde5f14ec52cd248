"""Where authors imported from in 0.1.0: it works for one release more, and says where to now."""

from __future__ import annotations

import warnings
from typing import Any

from vmdriver.lifecycle.extending import call_points, draft, hooks, phases

_HOMES = (hooks, phases, draft, call_points)
_RENAMED = {"Phase": "CallPoint"}
FOR_AUTHORS = frozenset(
    {
        *("CallPoint", "Call", "Context", "Extension", "Hold", "Until", "Draft"),
        *("EnvironmentDraft", "HookContext", "LaunchPlan", "LifecycleExtension"),
        *("PlanDraft", "Reason", "RestoreKind", "Everywhere", "OnRequest", "Refused"),
        *("SandboxView", "Resources", "MutationPoint", "PLAN_POINTS", "REQUEST_POINTS"),
    }
)
"""Names that vmdriver.extension has. The others that stood beside them were the machinery's."""


def moved(module: str, name: str) -> Any:
    """What `module` called `name`, with a DeprecationWarning at whoever asks. AttributeError."""
    if name == "__all__":
        return sorted(FOR_AUTHORS.union(_RENAMED))
    now = _RENAMED.get(name, name)
    found = [vars(home)[now] for home in _HOMES if now in vars(home)]
    if not found or name.startswith("_"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    advice = "it is not for authors, and goes without replacement"
    if now in FOR_AUTHORS:
        advice = f"from vmdriver.extension import {now}"
    text = f"{module}.{name} goes with the next release: {advice}"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return found[0]
