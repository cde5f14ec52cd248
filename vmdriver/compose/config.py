"""The composed driver's own settings. The base driver has its own, in its own process, and never
sees these; each extension sees its own table only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmdriver.compose.dialect import Meaning
from vmdriver.config.sources import read_toml
from vmdriver.errors import ConfigError

DEFAULT_FILE = Path("/etc/vmdriver/compose.toml")


class ComposeConfig(BaseModel):
    """compose.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: str = Field(description="address of the base driver, as unix:/run/base.sock")
    bind_socket: Path = Field(description="socket that the gateway is given")
    state_dir: Path = Field(
        Path("/var/lib/vmdriver-compose"),
        description="records and ledgers of what extensions hold",
    )
    driver_name: str = Field(
        "", description="name that the gateway sees; default <base's name>+<suffix>"
    )
    suffix: str = Field("vmdriver", description="of the default driver_name")
    base_wait_s: float = Field(
        20.0, gt=0, description="how long a call waits for a base that is away"
    )
    create_grace_s: float = Field(
        30.0,
        ge=0,
        description="how long a create that the base never answered may still appear",
    )
    extensions: list[str] = Field(
        default_factory=list, description="extensions to load, in this order"
    )
    request_parameters: list[str] = Field(
        default_factory=list,
        description="extensions that requests may configure through driver_config",
    )
    base_extensions: list[str] = Field(
        default_factory=list,
        description="label keys of extensions that the base driver has: passed on",
    )
    base_by_id: bool = Field(
        False,
        description="the base refuses a sandbox's id and name together: it is told the id",
    )
    base_reasons: Mapping[str, Meaning] = Field(
        default_factory=dict,
        description="the base's own reasons of Ready=False that are no errors, and what they "
        "mean: starting, stopping, stopped",
    )
    extension: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="one table per extension"
    )
    log_level: str = "info"
    log_format: str = "text"


def table(config: ComposeConfig) -> list[dict[str, Any]]:
    """Every setting with its value, whose it is, and where it came from. What the base driver and
    requests decide is not in here: it never mixes with these.
    """
    rows = []
    for name in ComposeConfig.model_fields:
        if name == "extension":
            continue
        value = config.model_dump(mode="json")[name]
        source = "file" if name in config.model_fields_set else "default"
        rows.append({"owner": "wrapper", "key": name, "value": value, "source": source})
    for name, settings in config.extension.items():
        rows += [
            {"owner": f"extension {name}", "key": key, "value": value, "source": "file"}
            for key, value in settings.items()
        ]
    return rows


def load(file: Path | None, flags: Mapping[str, Any]) -> ComposeConfig:
    """File, then flags. ConfigError names the key and where it stands."""
    values = read_toml(file, DEFAULT_FILE)
    try:
        config = ComposeConfig.model_validate({**values, **flags})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{key}: {first['msg']}",
            resolution=f"set it in {file or DEFAULT_FILE}, or as --{key.replace('_', '-')}",
        ) from error
    for name in {*config.extension, *config.request_parameters} - {*config.extensions}:
        raise ConfigError(
            f"extension.{name}: is configured and not loaded",
            resolution="list it in extensions",
        )
    return config
