"""What the guest is told: environment, main process, endpoint, files. Facts: contract
§4.1 to §4.4.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from vmdriver.errors import InvalidRequest, Refused
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.environment import is_driver_owned
from vmdriver.model.spec import SandboxSpec

HOST_ALIASES = (
    "host.openshell.internal",
    "host.containers.internal",
    "host.docker.internal",
    "gateway.containers.internal",
)
INNER_SANDBOX_NETWORK = ipaddress.IPv4Network("10.200.0.0/24")
"""The supervisor uses it inside the guest (contract §4.8)."""
MAX_ENVIRONMENT_STRING = 131072
"""Longest NAME=VALUE with its NUL that execve(2) takes: MAX_ARG_STRLEN, 32 pages."""
MAX_ENVIRONMENT = 2 * 1024 * 1024 - 128 * 1024
"""Most bytes of all strings and their pointers: a quarter of the stack's 8 MiB (execve(2)),
without what arguments and the supervisor's own additions may need.
"""
_POINTER_BYTES = 8
NO_IMAGE: Mapping[str, str] = {}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GUEST_ROOT = "/opt/openshell"


@dataclass(frozen=True)
class Endpoint:
    """The gateway as the guest dials it."""

    url: str
    host: str
    port: int
    on_host_loopback: bool
    secure: bool


def guest_endpoint(url: str) -> Endpoint:
    """Keep scheme, host name and port; a host that means "this machine" becomes
    host.openshell.internal.

    Raises ValueError for anything that is not an http or https URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
        raise ValueError(f"{url!r} is not an http:// or https:// URL of a gateway")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    local = _means_this_machine(parts.hostname)
    host = HOST_ALIASES[0] if local else parts.hostname
    shown = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{shown}:{port}{parts.path}"
    return Endpoint(url, host, port, local, parts.scheme == "https")


def _means_this_machine(host: str) -> bool:
    if host in {"localhost", *HOST_ALIASES} or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def main_process_spec(command: tuple[str, ...], tty: bool) -> str:
    """The canonical main process, as the supervisor reads it: base64url of JSON,
    without padding.
    """
    spec = {
        "version": 1,
        "command": list(command) or ["/bin/bash", "-l"],
        "tty": tty or not command,
    }
    encoded = base64.urlsafe_b64encode(json.dumps(spec, ensure_ascii=False).encode())
    return "base64url:" + encoded.decode().rstrip("=")


def _is_not_the_images(name: str) -> bool:
    """HOME and USER are those of the user that the workload runs as, which is not the image's."""
    return is_driver_owned(name) or name in {"HOME", "USER"}


def check_environment_name(name: str, field: str) -> None:
    """InvalidRequest unless it is a name, and not one of ours."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{field}[{name[:64]!r}]",
            "is not a name: letters, digits and _, no digit first",
        )
    if is_driver_owned(name):
        raise InvalidRequest(
            f"{field}[{name!r}]",
            "is reserved: names with this prefix are set by the driver",
        )


def environment(
    spec: SandboxSpec,
    settings: Settings,
    *,
    has_token: bool,
    image: Mapping[str, str] = NO_IMAGE,
) -> dict[str, str]:
    """The supervisor's whole environment. What the request and, below it, the image say is in
    OPENSHELL_USER_ENVIRONMENT, which the supervisor gives to the workload (contract §4.1): the
    supervisor is root, and its loader, its libc, its TLS and proxies obey variables.
    """
    endpoint = guest_endpoint(settings.endpoint)
    merged = {n: v for n, v in image.items() if not _is_not_the_images(n)}
    merged |= spec.environment
    result = {
        "HOME": "/sandbox",
        "USER": "sandbox",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM": "xterm",
        "OPENSHELL_ENDPOINT": endpoint.url,
        "OPENSHELL_SANDBOX_ID": spec.id,
        "OPENSHELL_SANDBOX": spec.name,
        "OPENSHELL_SSH_SOCKET_PATH": "/run/openshell/ssh.sock",
        "OPENSHELL_MAIN_PROCESS_SPEC": main_process_spec(spec.command, spec.tty),
        "OPENSHELL_LOG_LEVEL": spec.log_level or settings.guest_log_level,
        "OPENSHELL_TELEMETRY_ENABLED": "true" if settings.telemetry else "false",
        "OPENSHELL_NETWORK_RUNTIME_CAPABILITIES": "",
    }
    if merged:
        result["OPENSHELL_USER_ENVIRONMENT"] = json.dumps(
            merged, ensure_ascii=False, sort_keys=True
        )
    if endpoint.secure:
        result |= {
            "OPENSHELL_TLS_CA": f"{_GUEST_ROOT}/tls/ca.crt",
            "OPENSHELL_TLS_CERT": f"{_GUEST_ROOT}/tls/tls.crt",
            "OPENSHELL_TLS_KEY": f"{_GUEST_ROOT}/tls/tls.key",
        }
    if has_token:
        result["OPENSHELL_SANDBOX_TOKEN_FILE"] = f"{_GUEST_ROOT}/auth/sandbox.jwt"
    return result


def check_added(values: Mapping[str, str], added: Mapping[str, str]) -> None:
    """Refused where the guest's kernel could not pass the environment `values` to the supervisor
    with what extensions have put into it: `added` is names to extensions.
    """
    total = 0
    for name, value in values.items():
        size = _execve_bytes(name, value)
        total += size + _POINTER_BYTES
        if size > MAX_ENVIRONMENT_STRING and name in added:
            raise Refused(
                f"extension {added[name]!r}: env[{name}] is {size} bytes; the kernel "
                f"passes {MAX_ENVIRONMENT_STRING} at most",
                reason="ExtensionRefused",
            )
    if total > MAX_ENVIRONMENT and added:
        names = ", ".join(sorted(set(added.values())))
        raise Refused(
            f"extensions ({names}): the environment is {total} bytes with what they add; "
            f"the kernel passes {MAX_ENVIRONMENT} at most",
            reason="ExtensionRefused",
        )


def _execve_bytes(name: str, value: str) -> int:
    return len(name.encode()) + len(value.encode()) + 2


def check_passable(values: Mapping[str, str]) -> None:
    """InvalidRequest where the guest's kernel could not pass the environment to the
    supervisor. A NUL would end a string, and what is behind it would be a variable of its own.
    """
    fields = {
        "OPENSHELL_USER_ENVIRONMENT": "spec.environment",
        "OPENSHELL_MAIN_PROCESS_SPEC": "spec.command",
        "OPENSHELL_LOG_LEVEL": "spec.log_level",
        "OPENSHELL_SANDBOX": "name",
        "OPENSHELL_SANDBOX_ID": "id",
    }
    for name, value in values.items():
        if "\0" in value:
            raise InvalidRequest(
                fields.get(name, name),
                "holds a NUL character, which no process can be given",
            )
        size = _execve_bytes(name, value)
        if size > MAX_ENVIRONMENT_STRING:
            raise InvalidRequest(
                fields.get(name, name),
                f"is {size} bytes as the supervisor receives it; the kernel "
                f"passes {MAX_ENVIRONMENT_STRING} at most",
                resolution="make it shorter, or put it into a file of the image",
            )


def hostname(sandbox_name: str, sandbox_id: str) -> str:
    """A valid host name of at most 63 characters."""
    cleaned = re.sub(r"[^a-z0-9-]+", "-", sandbox_name.lower()).strip("-")
    return (
        cleaned[:63].rstrip("-")
        or f"sandbox-{re.sub(r'[^a-z0-9]+', '', sandbox_id.lower())[:8] or 'x'}"
    )
