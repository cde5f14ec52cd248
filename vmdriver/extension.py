"""All that an extension's author imports. Everything else in vmdriver is private.

    from vmdriver.extension import Context, Draft, Exhausted, Extension, Hold

Two languages, for one kind of class each; take the first unless you need the second:

    Extension             phases, on every driver of openshell.compute.v1, ours and composed ones.
                          Its manual: python -m pydoc vmdriver.lifecycle.extending.phases
    LifecycleExtension    the VM driver's hooks, more of them and closer to the machine.
                          Its manual: python -m pydoc vmdriver.lifecycle.extending.hooks

What is stable
--------------
The names below, their fields, methods and parameters, when each is called and what an error of it
means: `API_VERSION` is MAJOR.MINOR. The minor number grows when something is added (a field, a
hook, a call point), the major one when something is taken away or means something else; before
that, the old way works for one release with a DeprecationWarning. Objects that an extension is
given may have more fields than it knows of, and are made by the driver (or `vmdriver.testing`)
alone. Texts of errors and of the log are for people, and not stable.

`vmdriver extensions new NAME` writes a package that begins here; `vmdriver.testing` tests it.
"""

from __future__ import annotations

from vmdriver.errors import Exhausted, InvalidRequest, Refused
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.draft import (
    PLAN_POINTS,
    REQUEST_POINTS,
    Draft,
    EnvironmentDraft,
    MutationPoint,
    PlanDraft,
)
from vmdriver.lifecycle.extending.hooks import (
    Everywhere,
    HookContext,
    LifecycleExtension,
    OnRequest,
    SandboxView,
)
from vmdriver.lifecycle.extending.phases import Call, Context, Extension, Hold, Until
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason, RestoreKind
from vmdriver.model.spec import Resources

API_VERSION = "1.0"
"""Of this page."""

__all__ = [
    "API_VERSION",
    "PLAN_POINTS",
    "REQUEST_POINTS",
    "Call",
    "CallPoint",
    "Context",
    "Draft",
    "EnvironmentDraft",
    "Everywhere",
    "Exhausted",
    "Extension",
    "Hold",
    "HookContext",
    "InvalidRequest",
    "LaunchPlan",
    "LifecycleExtension",
    "MutationPoint",
    "OnRequest",
    "PlanDraft",
    "Reason",
    "Refused",
    "Resources",
    "RestoreKind",
    "SandboxView",
    "Until",
]
