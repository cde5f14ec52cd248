"""What `vmdriver compose` takes: its most important settings; the others are in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Its parser."""
    text = "run a driver in front of another one, with extensions around its calls"
    one = commands.add_parser("compose", help=text, description=text)
    one.add_argument(
        "--config",
        type=Path,
        help="TOML file; default /etc/vmdriver/compose.toml if it is there",
    )
    for name, meaning in (
        ("base", "address of the driver behind: unix:/run/base.sock or tls:HOST:PORT"),
        ("tls-ca", "for a base of tls: the authorities whose driver is taken"),
        ("tls-certificate", "for a base of tls: our certificate"),
        ("tls-key", "for a base of tls: its key"),
        ("tls-crl", "for a base of tls: lists of revoked certificates"),
        ("tls-server-name", "for a base of tls: its name; default HOST"),
        ("bind-socket", "socket that the gateway is given"),
        ("state-dir", "records and ledgers; default /var/lib/vmdriver-compose"),
        ("driver-name", "name that the gateway sees; default <base's>+<suffix>"),
        ("suffix", "of the default name"),
        ("log-level", "debug, info, warning or error"),
        ("metrics-listen", "metrics for Prometheus: unix:/PATH or 127.0.0.1:PORT"),
        (
            "otlp-endpoint",
            "collector that is sent metrics and traces: http://HOST:PORT",
        ),
    ):
        one.add_argument(f"--{name}", metavar="VALUE", help=meaning)
