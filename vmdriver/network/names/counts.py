"""What is counted of guests' questions for names."""

from __future__ import annotations

from opentelemetry import metrics

_names = metrics.get_meter("vmdriver").create_counter(
    "vmdriver.names",
    unit="{question}",
    description="guests' questions for names that the driver passes on to the host's resolver",
)


def asked(outcome: str) -> None:
    """By a guest. `outcome`: "answered", "failed" (no server has), "refused" or "dropped"."""
    _names.add(1, {"outcome": outcome})
