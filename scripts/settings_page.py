"""docs/configuration.md, of the models of both drivers' settings. Started by scripts/generate-docs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vmdriver.compose.config import ComposeConfig
from vmdriver.config import Config
from vmdriver.config.allowed import allowed
from vmdriver.config.sources import UPSTREAM_ENVIRONMENT

_NONE = "\N{EN DASH}"
_TITLES = {"driver": "The driver", "extending": "Extensions"}
_HEAD = """# Configuration

Settings come from a TOML file (`--config`, `VMDRIVER_CONFIG`, default `/etc/vmdriver/config.toml`), from the environment (`VMDRIVER_<SETTING>`), and from flags (`--setting-name`), in rising precedence: a flag wins over the environment, and that over the file.

```toml
# /etc/vmdriver/config.toml
openshell_endpoint = "http://127.0.0.1:17670"
mem_mib = 4096
egress = "none"
egress_allow = ["192.0.2.0/24"]
```

The file is one flat table, whatever sections are below. In the environment and in flags a list is written with commas (`VMDRIVER_EGRESS_ALLOW=192.0.2.0/24,198.51.100.7/32`). A name ends with its unit: `_mib` MiB, `_s` seconds, `_days` days.

`vmdriver config` prints what is in force, and where each value comes from. A setting that does not exist, or a value that cannot be, is refused by its name when the driver starts. A change holds from the driver's next start on (`systemctl restart vmdriver`; machines go on), that of `log_level` and `log_format` also from a reload."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(name: str, field: FieldInfo) -> str:
    if name.startswith("max_") and field.default_factory is not None:
        return "the host's CPUs" if "vcpus" in name else "the host's memory"
    value: Any = field.default
    if value is None or value is PydanticUndefined or value in ("", [], {}):
        return _NONE
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


def _table(fields: Mapping[str, FieldInfo]) -> Iterable[str]:
    yield "| setting | may be | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        cells = (f"`{name}`", allowed(field), _default(name, field))
        yield "| " + " | ".join((*cells, _cell(field.description or ""))) + " |"


def _sections() -> Iterable[str]:
    for name, section in Config.model_fields.items():
        model = section.annotation
        if model is None:
            continue
        yield from ("", f"## {_TITLES.get(name, name.capitalize())}", "")
        yield from ((model.__doc__ or "").strip(), "", *_table(model.model_fields))


def configuration() -> str:
    """Every setting, in the order of the model."""
    upstream = (
        f"| `{name}` | `{variable}` |"
        for name, variable in UPSTREAM_ENVIRONMENT.items()
    )
    lines = [
        *(_HEAD, *_sections(), "", "## Names of upstream's VM driver", ""),
        "A gateway that launches the driver sets these; they are read too, and `VMDRIVER_<SETTING>` "
        "wins over them.",
        *("", "| setting | also read from |", "|---|---|", *upstream),
        *("", "## A composed driver", ""),
        "Those of `vmdriver compose`, from `/etc/vmdriver/compose.toml` or its `--config`; the flags "
        "that it takes win over the file. [extensions.md](extensions.md) says what they are for.",
        *("", *_table(ComposeConfig.model_fields)),
    ]
    return "\n".join(lines) + "\n"
