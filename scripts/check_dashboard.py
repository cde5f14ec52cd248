"""Whether dashboards/vmdriver.json is a dashboard by Grafana's own types: its npm package of them, and
TypeScript's compiler. usage: scripts/check_dashboard.py [VERSION of @grafana/schema, 11]; needs npm
and its registry.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "dashboards" / "vmdriver.json"
_TYPES = "@grafana/schema/dist/esm/raw/composable"
_PANELS = {"timeseries": "TimeSeries", "stat": "Stat", "bargauge": "BarGauge"}
_ENUMS = {
    "mode": {
        "absolute": "ThresholdsMode.Absolute",
        "normal": "StackingMode.Normal",
        "none": "StackingMode.None",
        "multi": "TooltipDisplayMode.Multi",
    },
    "showPoints": {"auto": "VisibilityMode.Auto"},
    "displayMode": {"list": "LegendDisplayMode.List"},
    "sort": {"desc": "SortOrder.Descending"},
    "colorMode": {"value": "BigValueColorMode.Value"},
    "graphMode": {"area": "BigValueGraphMode.Area"},
    "orientation": {"horizontal": "VizOrientation.Horizontal"},
}
"""A text is no member of an enum for the compiler."""
_SETTINGS = {"strict": True, "noEmit": True, "skipLibCheck": True, "types": []}


def _lines(dashboard: dict[str, Any]) -> Iterator[str]:
    """A constant of Grafana's type for each part."""
    yield "import * as S from '@grafana/schema';"
    yield "type Some<T> = T extends object ? { [K in keyof T]?: Some<T[K]> } : T;"
    for kind, name in _PANELS.items():
        place = f"{_TYPES}/{kind}/panelcfg/x/{name}PanelCfg_types.gen"
        yield f"import type * as {name} from '{place}';"
    yield f"export const all: S.Dashboard = {json.dumps(dashboard)};"
    for number, panel in enumerate(dashboard["panels"]):
        if panel["type"] == "row":
            yield f"export const row{number}: S.RowPanel = {json.dumps(panel)};"
            continue
        name, options = _PANELS[panel["type"]], json.dumps(panel["options"])
        yield f"export const panel{number}: S.Panel = {json.dumps(panel)};"
        yield f"export const options{number}: Some<{name}.Options> = {options};"
        own = panel["fieldConfig"]["defaults"].get("custom")
        if own is not None:
            kind = f"Some<{name}.FieldConfig>"
            yield f"export const fields{number}: {kind} = {json.dumps(own)};"


def _with_enums(text: str) -> str:
    for key, members in _ENUMS.items():
        for value, member in members.items():
            text = re.sub(f'"{key}": "{value}"', f'"{key}": S.{member}', text)
    return text


def main(arguments: list[str]) -> int:
    """1: it is none; the compiler says where."""
    version = arguments[0] if arguments else "11"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "package.json").write_text("{}")
        wanted = (f"@grafana/schema@{version}", "typescript@5")
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--silent")
        subprocess.run(["npm", "install", *quiet, *wanted], cwd=folder, check=True)
        text = "\n".join(_lines(json.loads(DOCUMENT.read_text())))
        (folder / "check.ts").write_text(_with_enums(text))
        modules = {"module": "esnext", "moduleResolution": "node", "target": "es2020"}
        settings = {"compilerOptions": _SETTINGS | modules, "files": ["check.ts"]}
        (folder / "tsconfig.json").write_text(json.dumps(settings))
        done = subprocess.run(["node_modules/.bin/tsc"], cwd=folder, check=False)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
