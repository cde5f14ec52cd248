"""What Prometheus' own tool says of the alert rules and of the dashboard's queries."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.fakes.prometheus_queries import ALERTS, ALERTS_TEST, alerts, panels


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alert_rules_are_rules() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_for_what_is_wrong_and_for_nothing_else() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERTS_TEST)


def test_every_query_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    """JSON is YAML, and a query as good as a rule."""
    values = {"instance": ".*", "operation": ".*", "window": "5m"}
    rules = [
        {"record": f"query_{n}", "expr": q.asked(__rate_interval="1m", **values)}
        for n, q in enumerate(panels())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)
