"""What is counted of connections from other hosts."""

from __future__ import annotations

from opentelemetry import metrics

_connections = metrics.get_meter("vmdriver").create_counter(
    "vmdriver.tls.connections",
    unit="{connection}",
    description="connections from other hosts: taken, refused",
)


def taken() -> None:
    """Somebody on the list has come in."""
    _connections.add(1, {"outcome": "taken"})


def refused() -> None:
    """Somebody has not."""
    _connections.add(1, {"outcome": "refused"})
