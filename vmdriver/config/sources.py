"""Configuration: TOML file, environment, flags, in rising precedence. Each value knows
where it came from.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr, ValidationError

from vmdriver.config.model import SETTINGS, Config, config_of
from vmdriver.errors import ConfigError
from vmdriver.model.logins import without_logins

DEFAULT_FILE = Path("/etc/vmdriver/config.toml")
ENVIRONMENT_PREFIX = "VMDRIVER_"
UPSTREAM_ENVIRONMENT = {
    "bind_socket": "OPENSHELL_COMPUTE_DRIVER_SOCKET",
    "allow_same_uid_peer": "OPENSHELL_COMPUTE_DRIVER_ALLOW_SAME_UID_PEER",
    "openshell_endpoint": "OPENSHELL_GRPC_ENDPOINT",
    "default_image": "OPENSHELL_SANDBOX_IMAGE",
    "bootstrap_image": "OPENSHELL_VM_BOOTSTRAP_IMAGE",
    "state_dir": "OPENSHELL_VM_DRIVER_STATE_DIR",
    "guest_tls_ca": "OPENSHELL_VM_TLS_CA",
    "guest_tls_cert": "OPENSHELL_VM_TLS_CERT",
    "guest_tls_key": "OPENSHELL_VM_TLS_KEY",
    "vcpus": "OPENSHELL_VM_DRIVER_VCPUS",
    "mem_mib": "OPENSHELL_VM_DRIVER_MEM_MIB",
    "overlay_disk_mib": "OPENSHELL_VM_OVERLAY_DISK_MIB",
    "sandbox_uid": "OPENSHELL_VM_SANDBOX_UID",
    "sandbox_gid": "OPENSHELL_VM_SANDBOX_GID",
    "log_level": "OPENSHELL_LOG_LEVEL",
    "otlp_endpoint": "OPENSHELL_OTLP_ENDPOINT",
    "krun_log_level": "OPENSHELL_VM_KRUN_LOG_LEVEL",
    "telemetry": "OPENSHELL_TELEMETRY_ENABLED",
}
"""Names that the upstream VM driver reads; ours win over them."""
WITHOUT_MEANING = {
    "allow_same_uid_peer": "the socket's 0700 directory and 0600 mode decide who may connect",
    "bootstrap_image": "guests boot from our own boot files",
    "krun_log_level": "there is no libkrun",
}
"""Settings that are accepted so that a stock gateway can start us, and why they change
nothing.
"""


_SECRETS = {"key", "pass", "pw", "pwd", "auth", "dsn", "pin"}
_SECRET_WORDS = (
    *("secret", "token", "password", "passwd", "passphrase", "apikey", "accesskey"),
    *("signingkey", "private", "credentials", "authorization", "bearer", "cookie"),
)
"""Names, and what is in names, of what extensions' tables hold; small letters and digits alone."""


@dataclass(frozen=True)
class Loaded:
    """A configuration and, for each key, the source of its value."""

    config: Config
    sources: Mapping[str, str]
    file: Path | None = None
    """The one that was named, by a flag or in the environment."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """By setting."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables that say something of settings, with what they say."""

    def table(self) -> list[tuple[str, Any, str]]:
        """Key, JSON-able value and source; secrets hidden."""
        return [
            (key, hidden(key, value), self.sources.get(key, "default"))
            for key, value in self.values().items()
        ]

    def values(self) -> dict[str, Any]:
        """JSON-able values by key, secrets and all."""
        sections = self.config.model_dump(mode="json").values()
        return {key: value for section in sections for key, value in section.items()}


def hidden(key: str, value: Any) -> Any:
    """Extension tables are the only free-form part: what looks like a secret by its
    name is not shown, however deep it is; nor is anybody's login in an address.
    """
    name = "".join(letter for letter in key.casefold() if letter.isalnum())
    secret = name in _SECRETS or any(word in name for word in _SECRET_WORDS)
    if isinstance(value, dict):
        inside = "secret" if secret else ""
        return {inner: hidden(inside or inner, v) for inner, v in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(key, inner) for inner in value]
    if secret and value:
        return str(SecretStr("x"))
    return without_logins(value) if isinstance(value, str) else value


def quiet_libraries() -> None:
    """Keep gRPC's C core from writing its own lines between ours. Before grpc is
    imported.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # noqa: TID251 - the one place
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # noqa: TID251


def process_environment() -> Mapping[str, str]:
    """This process's, for what is the host's and none of our settings: its proxies."""
    return dict(os.environ)  # noqa: TID251 - the one place


def terminal_kind() -> str:
    """Of the terminal that this process has, as programs call it; "" where it has none."""
    return os.environ.get("TERM", "")[:31]  # noqa: TID251 - the one place


def _flattened(values: dict[str, Any]) -> dict[str, Any]:
    """[templates] enabled = ... is templates_enabled."""
    table = values.get("templates")
    if not isinstance(table, dict):
        return values  # of which that is no setting
    flat = {key: value for key, value in values.items() if key != "templates"}
    for key, value in table.items():
        flat[f"templates_{key}"] = value
    return flat


def read_toml(named: Path | None, default: Path) -> dict[str, Any]:
    """The file that was named, or what there is of the default one. ConfigError names the file."""
    path = named or default
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        if named is None:
            return {}
        raise ConfigError(f"configuration file {path} does not exist") from error
    except RecursionError as error:
        raise ConfigError(f"configuration file {path} is nested too deeply") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"configuration file {path} cannot be read: {error}"
        ) from error


def _from_environment(
    environment: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values, and the variables that they are from, by setting."""
    values, variables = {}, {}
    for key in SETTINGS:
        for name in (ENVIRONMENT_PREFIX + key.upper(), UPSTREAM_ENVIRONMENT.get(key)):
            if name is not None and environment.get(name):
                values[key], variables[key] = _split(key, environment[name]), name
                break
    return values, variables


def _split(key: str, text: str) -> Any:
    """Lists are comma-separated in the environment and in flags; a word that a setting knows
    beside its list is itself.

    >>> _split("host_access", "11434, 5432"), _split("host_access", "all")
    (['11434', '5432'], 'all')
    """
    annotation = SETTINGS[key].annotation
    kinds = get_args(annotation)
    words = [word for kind in kinds for word in get_args(kind)]
    if "list[" in str(annotation) and text not in words:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _check_keys(values: Mapping[str, Any], source: str) -> None:
    for key in values:
        if key not in SETTINGS:
            near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.0)
            raise ConfigError(
                f"{source}: {key!r} is not a setting",
                resolution=f"did you mean {near[0]!r}?",
            )


def _check_extensions(config: Config) -> None:
    for key in ("extension", "request_parameters"):
        for name in getattr(config.extending, key):
            if name not in config.extending.extensions:
                raise ConfigError(
                    f"{key}: {name} is configured and not loaded",
                    resolution="list it in extensions",
                )


def load(
    *,
    file: Path | None = None,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Put the sources together and check the result. ConfigError names the key and the
    source.
    """
    environment = os.environ if environment is None else environment  # noqa: TID251 - the one place
    if file is None and environment.get("VMDRIVER_CONFIG"):
        file = Path(environment["VMDRIVER_CONFIG"])
    values = _flattened(read_toml(file, DEFAULT_FILE))
    file_source = f"file {file or DEFAULT_FILE}"
    _check_keys(values, file_source)
    sources = dict.fromkeys(values, file_source)
    from_environment, variables = _from_environment(environment)
    given = {key: _split(key, text) for key, text in (flags or {}).items()}
    values = {**values, **from_environment, **given}
    sources |= {key: f"environment {name}" for key, name in variables.items()}
    sources |= {key: f"flag --{key.replace('_', '-')}" for key in given}
    told = {name: environment[name] for name in variables.values()}
    try:
        config = config_of(values)
        _check_extensions(config)
        return Loaded(config, sources, file, dict(flags or {}), told)
    except ValidationError as error:
        first = error.errors()[0]
        within = [str(part) for part in first["loc"][1:]]
        key = ".".join(within)
        where = sources.get(within[0], "defaults") if within else "configuration"
        raise ConfigError(
            f"{where}: {key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from error
