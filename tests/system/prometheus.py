"""A real Prometheus, of Debian's package, which scrapes a driver, and one in front of it."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes.ports import free_port
from tests.fakes.prometheus_queries import ALERTS
from tests.fakes.waiting import until

_CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: vmdriver
    static_configs: [{{targets: {targets}}}]
"""


class Prometheus:
    """Its API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _asked(self, path: str, **values: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(values)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def values(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """By labels, now."""
        found = self._asked("query", query=expression)["result"]
        return {frozenset(r["metric"].items()): float(r["value"][1]) for r in found}

    def sum(self, expression: str) -> float:
        """Of all series; 0 where there is none."""
        return sum(self.values(expression).values())

    def rules(self) -> list[dict[str, Any]]:
        """With `health`, `lastError` and `state`."""
        return [rule for g in self._asked("rules")["groups"] for rule in g["rules"]]


@contextmanager
def prometheus(directory: Path, *ports: int) -> Iterator[Prometheus]:
    """Scrapes those drivers each second, until the end of the block."""
    port, config = free_port(), directory / "prometheus.yml"
    targets = json.dumps([f"127.0.0.1:{of_driver}" for of_driver in ports])
    config.write_text(_CONFIG.format(rules=ALERTS, targets=targets))
    log = (directory / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'series'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        stdout=log,
        stderr=log,
    )
    found = Prometheus(port)
    try:
        until(found.answers, lambda: (directory / "prometheus.log").read_text())
        yield found
    finally:
        process.terminate()
        process.wait(20)
        log.close()
