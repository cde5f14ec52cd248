"""The composed driver's own settings. The base driver has its own, in its own process, and never
sees these; each extension sees its own table only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vmdriver.compose.dialect import Meaning
from vmdriver.config.log_level import LogLevel
from vmdriver.config.paths import AbsolutePath
from vmdriver.config.sources import read_toml
from vmdriver.errors import ConfigError
from vmdriver.service.tls.address import parse_address
from vmdriver.service.tls.keys import Keys
from vmdriver.telemetry.listen import CollectorUrl, MetricsAddress

SCHEME = "tls:"
"""Of a base on another host."""
_TLS = ("tls_ca", "tls_certificate", "tls_key", "tls_crl", "tls_server_name")
DEFAULT_FILE = Path("/etc/vmdriver/compose.toml")


class ComposeConfig(BaseModel):
    """compose.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: str = Field(
        description="address of the base driver, as unix:/run/base.sock; on another host "
        "tls:HOST:PORT (docs/remote.md)"
    )
    tls_ca: AbsolutePath | None = Field(
        None, description="certificates of the authorities whose driver is taken"
    )
    tls_certificate: AbsolutePath | None = Field(
        None, description="our certificate, for a base on another host"
    )
    tls_key: AbsolutePath | None = Field(
        None, description="its key, which nobody else may read"
    )
    tls_crl: AbsolutePath | None = Field(
        None,
        description="those authorities' lists of revoked certificates; none: nothing is revoked",
    )
    tls_server_name: str = Field(
        "",
        description="name that the base's certificate is for; default the HOST of base",
    )
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
        description="how long a create or a start that the base never answered may still happen",
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
    log_level: LogLevel = Field("info", description="debug, info, warning or error")
    log_format: Literal["text", "json"] = Field(
        "text", description="one line a record, on standard error, or a JSON object"
    )
    metrics_listen: MetricsAddress = Field(
        "",
        description="where Prometheus may ask for metrics: unix:/PATH, or a port of the loopback",
    )
    otlp_endpoint: CollectorUrl = Field(
        "",
        description="OpenTelemetry collector that metrics and traces are sent to, by gRPC",
    )

    @model_validator(mode="after")
    def _tls_together(self) -> Self:
        """A base on another host needs all of them, another one none."""
        if not self.base.startswith(SCHEME):
            named = [key for key in _TLS if getattr(self, key)]
            if named:
                raise ValueError(f"{named[0]} goes with a base of {SCHEME}HOST:PORT")
            return self
        parse_address(self.base.removeprefix(SCHEME))
        missing = [key for key in _TLS[:3] if not getattr(self, key)]
        if missing:
            raise ValueError(f"a base of {SCHEME} needs {', '.join(missing)}, too")
        return self

    def keys(self) -> Keys | None:
        """None: the base is on this host."""
        ca, certificate, key = self.tls_ca, self.tls_certificate, self.tls_key
        if ca is None or certificate is None or key is None:
            return None
        return Keys(ca, certificate, key, self.tls_crl)


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


def load(
    file: Path | None, flags: Mapping[str, Any], taken: Collection[str] = ()
) -> ComposeConfig:
    """File, then flags. ConfigError names the key and where it can be set: in the file, and as a
    flag if it is `taken` as one.
    """
    values = read_toml(file, DEFAULT_FILE)
    try:
        config = ComposeConfig.model_validate({**values, **flags})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        if not key:  # of several together
            raise ConfigError(text) from error
        absent = first["type"] == "missing"
        flag = f", or as --{key.replace('_', '-')}" if key in taken else ""
        raise ConfigError(
            f"{key}: {'it is needed, and not set' if absent else text}",
            resolution=f"set it in {file or DEFAULT_FILE}{flag}",
        ) from error
    for name in {*config.extension, *config.request_parameters} - {*config.extensions}:
        raise ConfigError(
            f"extension.{name}: is configured and not loaded",
            resolution="list it in extensions",
        )
    return config
