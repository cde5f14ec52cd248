"""How a client connects to a server whose process has just been begun."""

from __future__ import annotations

EAGER = [
    # Channels share their connections, broken ones too, unless told not to.
    ("grpc.use_local_subchannel_pool", 1),
    # Else whoever comes too early tries again a second later, and 1.6 s after that.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]
"""A channel's options."""
