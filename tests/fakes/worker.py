"""Which of the workers that test side by side this is."""

from __future__ import annotations

import os

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""From 0 on: what is the host's, such as the number of a user whose processes are looked for, is not shared with others."""
