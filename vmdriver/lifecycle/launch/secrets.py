"""The guest's secrets, known by a digest only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def secrets_digest(secrets: Mapping[str, bytes]) -> str:
    """One digest over names and contents, so that a change is noticed without keeping them."""
    digest = hashlib.sha256()
    for name, data in sorted(secrets.items()):
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
