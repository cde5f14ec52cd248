"""dashboards/vmdriver.json, Grafana's: written by scripts/generate-docs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_SCHEMA = 39
"""Grafana 11; later ones read it and bring it up to their own."""
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HERE = 'instance=~"$instance"'
_STARTS = 'operation=~"booted|relaunched|template|resumed|snapshot"'
_ENDS = 'operation!~"booted|relaunched|template|resumed|snapshot"'
_CHOSEN = 'operation=~"$operation"'
_CACHE = 'reason=~"CacheHit|CacheMiss"'
_RATE, _WINDOW = "[$__rate_interval]", "[$window]"


@dataclass(frozen=True)
class Panel:
    """`queries`: legend -> expression. `width` of 24. `meant`: what it says, and when to worry."""

    title: str
    queries: dict[str, str]
    meant: str = ""
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    thresholds: tuple[tuple[float, str], ...] = field(default=())


def _is(label: str, value: str) -> str:
    return f'{label}="{value}"'


def _metric(name: str, *selectors: str) -> str:
    return f"vmdriver_{name}{{{', '.join((_HERE, *selectors))}}}"


def _quantile(of: str, name: str, by: str, *selectors: str, over: str = _WINDOW) -> str:
    buckets = _metric(f"{name}_seconds_bucket", *selectors)
    grouped = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({of}, sum by ({grouped}) (rate({buckets}{over})))"


def _sum(by: str, what: str) -> str:
    return f"sum by ({by}) ({what})"


def _or_none(what: str) -> str:
    return f"{what} or vector(0)"


_MANY = ((0, "green"), (1, "orange"))
_FEW = ((0, "red"), (0.1, "orange"), (0.25, "green"))
OVERVIEW = (
    Panel(
        "Drivers that answer",
        {"": f"sum(up{{{_HERE}}})"},
        kind="stat",
        width=4,
        thresholds=((0, "red"), (1, "green")),
    ),
    Panel(
        "Sandboxes",
        {"": _or_none(f"sum({_metric('sandboxes')})")},
        kind="stat",
        width=4,
    ),
    Panel(
        "That run",
        {"": _or_none(f"sum({_metric('sandboxes', _is('phase', 'running'))})")},
        kind="stat",
        width=4,
    ),
    Panel(
        "That failed",
        {"": _or_none(f"sum({_metric('sandboxes', _is('phase', 'failed'))})")},
        kind="stat",
        width=4,
        thresholds=_MANY,
    ),
    Panel(
        "That stand still",
        {"": _or_none(f"sum({_metric('sandboxes_still')})")},
        "Machines that are paused and will go on: the disk is full, or their network is broken.",
        kind="stat",
        width=4,
        thresholds=_MANY,
    ),
    Panel(
        "Addresses left",
        {"": f"min({_metric('addresses_left')} / {_metric('addresses_limit')})"},
        "Of the fullest driver.",
        unit="percentunit",
        kind="stat",
        width=4,
        thresholds=_FEW,
    ),
    Panel(
        "Sandboxes by phase",
        {"{{phase}}": _sum("phase", _metric("sandboxes"))},
        stacked=True,
    ),
    Panel(
        "Sandboxes by workspace",
        {"{{workspace}}": f"topk(10, {_sum('workspace', _metric('sandboxes'))})"},
        "The ten that have most.",
        stacked=True,
    ),
    Panel(
        "Failures by reason",
        {
            "launch: {{reason}}": _sum(
                "reason", f"increase({_metric('launch_failures_total')}{_WINDOW})"
            ),
            "sandbox: {{reason}}": _sum(
                "reason", f"increase({_metric('failures_total')}{_WINDOW})"
            ),
        },
        "`vmdriver explain REASON` says what each means.",
    ),
)
STARTS = (
    Panel(
        "Starts",
        {
            "{{operation}}": _sum(
                "operation",
                f"increase({_metric('operation_duration_seconds_count', _STARTS)}{_WINDOW})",
            )
        },
        "By what they started from.",
        stacked=True,
    ),
    Panel(
        "Time of a start",
        {
            "{{operation}}, median": _quantile(
                "0.5", "operation_duration", "operation", _STARTS
            ),
            "{{operation}}, 95 of 100": _quantile(
                "0.95", "operation_duration", "operation", _STARTS
            ),
        },
        "From the wish to the running workload.",
        unit="s",
    ),
    Panel(
        "Time of suspensions, snapshots, stops, deletes",
        {
            "{{operation}}, 95 of 100": _quantile(
                "0.95", "operation_duration", "operation", _ENDS
            )
        },
        unit="s",
    ),
    Panel(
        "Mean time of each step",
        {
            "{{operation}}: {{step}}": (
                _sum(
                    "operation, step",
                    f"rate({_metric('step_duration_seconds_sum', _CHOSEN)}{_WINDOW})",
                )
                + " / "
                + _sum(
                    "operation, step",
                    f"rate({_metric('step_duration_seconds_count', _CHOSEN)}{_WINDOW})",
                )
            )
        },
        "Of the operations that are chosen above. Steps may lie beside each other.",
        unit="s",
        width=16,
    ),
    Panel(
        "Longest in a phase that none stays in",
        {"{{phase}}": f"max by (phase) ({_metric('phase_age_seconds')})"},
        "Images are fetched in launching.",
        unit="s",
    ),
    Panel(
        "Templates looked for",
        {
            "{{outcome}}": _sum(
                "outcome", f"increase({_metric('template_lookups_total')}{_WINDOW})"
            )
        },
        "A miss boots, and has a template made; none: it may not be used for that sandbox.",
        width=6,
        stacked=True,
    ),
    Panel(
        "Waiting machines looked for",
        {
            "{{outcome}}": _sum(
                "outcome", f"increase({_metric('warm_pool_lookups_total')}{_WINDOW})"
            )
        },
        "With warm_pool. A miss goes on from the template itself.",
        width=6,
        stacked=True,
    ),
    Panel(
        "Guests' questions for names",
        {
            "{{outcome}}": _sum(
                "outcome", f"increase({_metric('names_total')}{_WINDOW})"
            )
        },
        "That come to the driver (dns). Failed: no server of the host's answers.",
        width=6,
        stacked=True,
    ),
    Panel(
        "Waiting machines",
        {
            "waiting": f"sum({_metric('warm_pool_waiting')})",
            "wanted": f"sum({_metric('warm_pool_wanted')})",
            "templates": f"sum({_metric('templates')})",
        },
        width=6,
    ),
    Panel(
        "Time of extensions' calls, 95 of 100",
        {
            "{{extension}}": _quantile(
                "0.95", "extension_call_duration", "extension", over=_WINDOW
            )
        },
        unit="s",
        width=6,
    ),
)
MEMORY = (
    Panel(
        "Memory",
        {
            "committed": f"sum({_metric('memory_committed_bytes')})",
            "max_committed_mem_mib": f"sum({_metric('memory_limit_bytes')})",
            "machines, really": f"sum({_metric('machines_memory_bytes')})",
            "waiting ones beside them": f"sum({_metric('warm_pool_memory_bytes')})",
            "what reads host folders for them": f"sum({_metric('host_folders_memory_bytes')})",
        },
        "What machines that are meant to run might take, and what they take; shared pages are divided.",
        unit="bytes",
        width=12,
    ),
    Panel(
        "The host's",
        {
            "all": f"sum({_metric('host_memory_bytes')})",
            "available": f"sum({_metric('host_memory_available_bytes')})",
        },
        unit="bytes",
        width=6,
    ),
    Panel(
        "Committed of what may be",
        {
            "{{instance}}": f"{_metric('memory_committed_bytes')} / {_metric('memory_limit_bytes')}"
        },
        "At 1 the next start is refused with MemoryExhausted.",
        unit="percentunit",
        width=6,
    ),
)
DISK = (
    Panel(
        "Left on the disk of state_dir",
        {
            "{{instance}}": f"{_metric('disk_free_bytes')} / {_metric('disk_size_bytes')}"
        },
        unit="percentunit",
        width=6,
    ),
    Panel(
        "What state_dir holds",
        {"{{folder}}": _sum("folder", _metric("disk_used_bytes"))},
        "Looked at once a minute.",
        unit="bytes",
        width=10,
        stacked=True,
    ),
    Panel(
        "Snapshots",
        {"bytes": f"sum({_metric('snapshots_size_bytes')})"},
        unit="bytes",
        width=4,
    ),
    Panel(
        "Number of snapshots",
        {"snapshots": f"sum({_metric('snapshots')})"},
        width=4,
    ),
    Panel(
        "Volumes: sizes of each workspace's, and the limit of all",
        {
            "{{workspace}}": _sum("workspace", _metric("volumes_size_bytes")),
            "max_volumes_mib": f"max({_metric('volumes_limit_bytes')})",
        },
        "What they take on disk is the folder `volumes` above.",
        unit="bytes",
        width=16,
    ),
    Panel(
        "Number of volumes, and those that cannot be read",
        {
            "volumes": f"sum({_metric('volumes')})",
            "unreadable": f"sum({_metric('volumes_unreadable')})",
        },
        "`vmdriver volume ls` says what is wrong with one that cannot be read.",
    ),
)
IMAGES = (
    Panel("Images", {"": f"sum({_metric('images')})"}, kind="stat", width=4),
    Panel(
        "They take",
        {"": f"sum({_metric('images_size_bytes')})"},
        unit="bytes",
        kind="stat",
        width=4,
    ),
    Panel(
        "The largest",
        {"{{image}} {{digest}}": f"topk(10, {_metric('image_size_bytes')})"},
        unit="bytes",
        kind="bargauge",
    ),
    Panel(
        "Found prepared, or fetched",
        {
            "{{reason}}": _sum(
                "reason",
                f"increase({_metric('events_total', _CACHE)}{_WINDOW})",
            )
        },
        stacked=True,
    ),
)
GUESTS = (
    Panel(
        "Processors in use, the busiest machines",
        {
            "{{sandbox}}": f"rate({_metric('machine_cpu_time_seconds_total')}{_RATE})",
            "all": f"sum(rate({_metric('machines_cpu_time_seconds_total')}{_RATE}))",
        },
        "The twenty that used most since the last look have lines of their own.",
    ),
    Panel(
        "Memory, the busiest machines",
        {"{{sandbox}}": _metric("machine_memory_bytes")},
        unit="bytes",
    ),
    Panel(
        "Disk, all machines",
        {
            "read": f"sum(rate({_metric('machines_disk_read_bytes_total')}{_RATE}))",
            "written": f"sum(rate({_metric('machines_disk_written_bytes_total')}{_RATE}))",
        },
        unit="Bps",
    ),
    Panel(
        "Disk, the busiest machines",
        {
            "{{sandbox}} reads": f"rate({_metric('machine_disk_read_bytes_total')}{_RATE})",
            "{{sandbox}} writes": f"rate({_metric('machine_disk_written_bytes_total')}{_RATE})",
        },
        unit="Bps",
    ),
    Panel(
        "Network, all machines",
        {
            "received": f"sum(rate({_metric('machines_network_received_bytes_total')}{_RATE}))",
            "sent": f"sum(rate({_metric('machines_network_sent_bytes_total')}{_RATE}))",
        },
        unit="Bps",
    ),
    Panel(
        "Network, the busiest machines",
        {
            "{{sandbox}} receives": f"rate({_metric('machine_network_received_bytes_total')}{_RATE})",
            "{{sandbox}} sends": f"rate({_metric('machine_network_sent_bytes_total')}{_RATE})",
        },
        unit="Bps",
    ),
)
HEALTH = (
    Panel(
        "How late the event loop is",
        {
            "{{instance}}, 99 of 100": _quantile(
                "0.99", "loop_lag", "instance", over=_RATE
            ),
            "{{instance}}, median": _quantile(
                "0.5", "loop_lag", "instance", over=_RATE
            ),
        },
        "Whatever blocks it holds up every sandbox.",
        unit="s",
    ),
    Panel(
        "Ready",
        {"{{instance}}": _metric("ready")},
        "1: what was there before it began is taken up. Until then nothing of sandboxes is shown.",
        width=4,
    ),
    Panel(
        "Who watches",
        {"{{instance}}": _metric("watchers")},
        "A gateway has one stream; none: no gateway is there.",
        width=4,
    ),
    Panel(
        "Numbers left",
        {
            "{{instance}} addresses": f"{_metric('addresses_left')} / {_metric('addresses_limit')}",
            "{{instance}} machine_uids": f"{_metric('machine_uids_left')} / {_metric('machine_uids_limit')}",
        },
        unit="percentunit",
        width=4,
    ),
    Panel(
        "Programs that read folders of the host",
        {"{{instance}}": _metric("host_folders_readers")},
        "One for each folder of each machine; if one ends, its machine waits (HostMountLost).",
        width=4,
    ),
    Panel(
        "Devices that machines have",
        {
            "{{instance}}": _metric("devices_held"),
            "{{instance}}, of": _metric("devices_limit"),
        },
        "Of passthrough_devices.",
        width=4,
    ),
    Panel(
        "Warnings by reason",
        {
            "{{reason}}": _sum(
                "reason",
                f"increase({_metric('events_total', _is('type', 'Warning'))}{_WINDOW})",
            )
        },
    ),
    Panel(
        "The driver's processor time",
        {"{{instance}}": f"rate(process_cpu_seconds_total{{{_HERE}}}{_RATE})"},
        width=6,
    ),
    Panel(
        "The driver's memory",
        {"{{instance}}": f"process_resident_memory_bytes{{{_HERE}}}"},
        unit="bytes",
        width=6,
    ),
    Panel(
        "The driver's open files",
        {
            "{{instance}}": f"process_open_fds{{{_HERE}}}",
            "{{instance}} may": f"process_max_fds{{{_HERE}}}",
        },
        width=6,
    ),
    Panel(
        "Extensions' calls that failed",
        {
            "{{extension}}.{{phase}}": _sum(
                "extension, phase",
                f"increase({_metric('extension_call_duration_seconds_count', _is('outcome', 'failed'))}{_WINDOW})",
            ),
            "all calls": f"sum(increase({_metric('extension_call_duration_seconds_count')}{_WINDOW}))",
        },
        width=6,
    ),
    Panel(
        "Sandboxes that cannot be read",
        {"{{instance}}": _metric("sandboxes_unreadable")},
        "They are set aside; `vmdriver doctor` names them.",
        width=6,
    ),
    Panel(
        "Sandboxes of max_sandboxes",
        {
            "{{instance}}": f"(sum by (instance) ({_metric('sandboxes')}) / on (instance) "
            f"{_metric('sandboxes_limit')}) or 0 * {_metric('sandboxes_limit')}"
        },
        unit="percentunit",
        width=6,
    ),
    Panel(
        "Connections from other hosts",
        {
            "{{outcome}}": _sum(
                "outcome", f"increase({_metric('tls_connections_total')}{_WINDOW})"
            )
            + " or vector(0)"
        },
        "Refused are also those who had not yet shown who they are; the log says why.",
        width=6,
    ),
    Panel(
        "Versions",
        {
            "{{instance}} {{service_version}}": f"count by (instance, service_version) (target_info{{{_HERE}}})"
        },
        width=6,
    ),
)
COMPOSED = (
    Panel(
        "Bases that are followed",
        {"{{instance}}": _metric("composed_base_connected")},
        "0: it is away; what it says is passed on when it is there again.",
    ),
    Panel(
        "Sandboxes that extensions take part in",
        {
            "{{stage}}": _sum("stage", _metric("composed_sandboxes")),
            "the base's": f"sum({_metric('composed_base_sandboxes')})",
        },
    ),
    Panel(
        "What extensions hold",
        {
            "{{extension}}": _sum("extension", _metric("composed_held")),
            "sandboxes of which it cannot be given back": (
                f"sum({_metric('composed_sandboxes_troubled')})"
            ),
        },
    ),
    Panel(
        "Time of calls, 95 of 100",
        {
            "{{method}}": _quantile(
                "0.95", "composed_call_duration", "method", over=_WINDOW
            )
        },
        "With the base's part, and its extensions'.",
        unit="s",
        width=12,
    ),
    Panel(
        "Calls by what became of them",
        {
            "{{outcome}}": _sum(
                "outcome",
                f"increase({_metric('composed_call_duration_seconds_count')}{_WINDOW})",
            )
        },
        "Base refused: in the base's words.",
        width=12,
        stacked=True,
    ),
)
ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": OVERVIEW,
    "Starts": STARTS,
    "Memory": MEMORY,
    "Disk": DISK,
    "Images": IMAGES,
    "Guests": GUESTS,
    "The driver's health": HEALTH,
    "Composed drivers": COMPOSED,
}
_HEIGHT = {"stat": 4, "timeseries": 8, "bargauge": 8}


def _targets(panel: Panel) -> list[dict[str, Any]]:
    return [
        {
            "datasource": _SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend or "__auto",
            "range": True,
            "refId": chr(ord("A") + number),
        }
        for number, (legend, expression) in enumerate(panel.queries.items())
    ]


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [
        {"color": color, "value": value if number else None}
        for number, (value, color) in enumerate(panel.thresholds or ((0, "green"),))
    ]
    found: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        found["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "auto",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    return found


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"]},
    },
    "bargauge": {
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"]},
    },
}


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        place = {"h": 1, "w": 24, "x": 0, "y": top}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top, left, height = top + 1, 0, 0
        for panel in panels:
            number += 1
            if left + panel.width > 24:
                top, left, height = top + height, 0, 0
            own = _HEIGHT[panel.kind]
            yield {
                "id": number,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.meant,
                "datasource": _SOURCE,
                "gridPos": {"h": own, "w": panel.width, "x": left, "y": top},
                "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
                "options": _OPTIONS[panel.kind],
                "targets": _targets(panel),
            }
            left, height = left + panel.width, max(height, own)
        top += height


def _asked_of_prometheus(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _variables() -> list[dict[str, Any]]:
    windows = ["5m", "15m", "1h", "6h", "1d"]
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
        },
        _asked_of_prometheus(
            "instance", "Driver", "label_values(vmdriver_sandboxes_limit, instance)"
        ),
        _asked_of_prometheus(
            "operation",
            "Operation",
            f"label_values({_metric('operation_duration_seconds_count')}, operation)",
        ),
        {
            "name": "window",
            "label": "What happens seldom: in the last",
            "type": "custom",
            "query": ",".join(windows),
            "current": {"text": "15m", "value": "15m"},
            "options": [
                {"text": w, "value": w, "selected": w == "15m"} for w in windows
            ],
        },
    ]


def dashboard() -> str:
    """The document."""
    return (
        json.dumps(
            {
                "id": None,
                "title": "vmdriver",
                "description": "Written by scripts/generate-docs from scripts/dashboard.py.",
                "tags": ["vmdriver", "openshell"],
                "schemaVersion": _SCHEMA,
                "version": 1,
                "editable": True,
                "graphTooltip": 1,
                "refresh": "30s",
                "time": {"from": "now-6h", "to": "now"},
                "timezone": "browser",
                "templating": {"list": _variables()},
                "annotations": {"list": []},
                "links": [],
                "panels": list(_panels()),
            },
            indent=1,
        )
        + "\n"
    )
