"""The dashboard and the alert rules ask for what there is, and what they link to is there."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client import REGISTRY

from tests.fakes.prometheus_queries import (
    ALERTS,
    ALERTS_TEST,
    DASHBOARD,
    OF_A_TARGET,
    ROOT,
    Alert,
    Query,
    alerts,
    known,
    panels,
)

NOT_OURS = {
    "up": set(OF_A_TARGET),
    "target_info": OF_A_TARGET
    | {"service_name", "service_version", "service_instance_id"},
    **{
        sample.name: set(OF_A_TARGET)
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("process_")
    },
}
"""With their labels: Prometheus' own, and its client's."""
QUERIES = [*panels(), *(alert.query for alert in alerts())]


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.where)
def test_a_query_names_metrics_that_there_are_with_labels_that_they_have(
    query: Query,
) -> None:
    there, labels = known() | NOT_OURS, set()
    asked = list(query.series())
    assert asked, "it asks for nothing of ours"
    for name, matched in asked:
        assert name in there, f"{name} is no metric"
        assert matched <= there[name], f"{name} has no {matched - there[name]}"
        labels |= there[name]
    assert query.labels() <= labels


def test_every_metric_is_on_the_dashboard() -> None:
    """Or there is no need of it."""
    shown = {name for query in panels() for name, _ in query.series()}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known()}
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert stems - seen == set()


def test_the_dashboard_has_its_rows_and_names_no_grafanas_own_ids() -> None:
    document = json.loads(DASHBOARD.read_text())
    rows = [p["title"] for p in document["panels"] if p["type"] == "row"]
    assert rows == [
        *("Overview", "Starts", "Memory", "Disk", "Images", "Guests"),
        "The driver's health",
        "Composed drivers",
    ]
    assert (document["id"], "uid" in document) == (None, False)
    sources = {
        (holder["datasource"]["type"], holder["datasource"]["uid"])
        for panel in document["panels"]
        if panel["type"] != "row"
        for holder in (panel, *panel["targets"])
    }
    assert sources == {("prometheus", "${datasource}")}
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [p["title"] for p in document["panels"] if p["type"] != "row"]
    assert len(set(titles)) == len(titles)


def test_panels_lie_beside_each_other_and_not_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & taken, panel["title"]
        taken |= own


def anchors(text: str) -> set[str]:
    """Of a page's headings, as they are made of them in links."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_alert_is_read_here() -> None:
    """What this file knows of YAML is little."""
    assert ALERTS.read_text().count("- alert:") == len(alerts()) > 15


@pytest.mark.parametrize("alert", alerts(), ids=lambda a: a.query.where)
def test_an_alert_says_what_is_wrong_what_to_do_and_where_more_is_said(
    alert: Alert,
) -> None:
    assert "$labels" in alert.summary
    assert alert.summary.endswith(".")
    assert alert.action.endswith(".")
    page, _, anchor = alert.docs.partition("#")
    assert anchor in anchors((ROOT / page).read_text())


def test_every_alert_is_made_to_fire_by_a_test() -> None:
    fired = set(re.findall(r'alertname="(\w+)"', ALERTS_TEST.read_text()))
    assert fired == {alert.query.where for alert in alerts()}
