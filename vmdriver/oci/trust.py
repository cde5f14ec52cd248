"""What skopeo is told of trust: whose images are taken, and which credentials it is given. Reads
the operator's files; skopeo gets copies of what it needs of them, under paths of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vmdriver.errors import ConfigError
from vmdriver.oci.policy import ImagePolicy

HOST_POLICY = Path("/etc/containers/policy.json")
"""Applies where the operator has set no other and the host has it."""
WRITTEN_POLICY = {
    "default": [{"type": "reject"}],
    "transports": {
        transport: {"": [{"type": "insecureAcceptAnything"}]}
        for transport in ("docker", "oci", "containers-storage", "docker-daemon")
    },
}
"""containers-policy.json(5), where there is no file: images need no signature, and come from
nowhere but from where the driver looks for them.
"""
AUTH, POLICY = Path("/run/given/auth.json"), Path("/run/given/policy.json")
REGISTRIES = Path("/run/given/registries.conf")
CERTIFICATES = Path("/run/given/certs")
HOST_REGISTRIES = Path("/etc/containers/registries.conf")
_HOST_CERTIFICATES = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
LOGINS = ("/run/containers/0/auth.json", "/root/.docker/config.json")
"""Where `podman login`, `skopeo login` and `docker login` of root's put them."""
Files = list[tuple[Path, bytes]]


def given(policy: ImagePolicy, registry: str) -> Files:
    """The files for a question to that registry; "" for none. Blocking. ConfigError where one that
    the operator names cannot be read.
    """
    found = [(POLICY, signature_policy(policy)), *_registries(policy)]
    found += _keys(found[0][1])
    if registry:
        found += _certificates(policy, registry)
    entries = credentials(policy, registry)
    if entries:
        found.append((AUTH, json.dumps({"auths": entries}).encode()))
    return found


def signature_policy(policy: ImagePolicy) -> bytes:
    """The one that is in force. ConfigError."""
    if policy.signature_policy is not None:
        return _read(policy.signature_policy, "image_signature_policy")
    if HOST_POLICY.is_file():
        return _read(HOST_POLICY, "image_signature_policy")
    return json.dumps(WRITTEN_POLICY).encode()


def policy_in_force(policy: ImagePolicy) -> str:
    """Which one that is, and what it says by default: one line for the operator. ConfigError."""
    if policy.signature_policy is None and not HOST_POLICY.is_file():
        return "vmdriver's own: any image from where it looks for them"
    where = policy.signature_policy or HOST_POLICY
    try:
        rules = json.loads(signature_policy(policy))["default"]
        kinds = ", ".join(str(rule["type"]) for rule in rules)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"image_signature_policy: {where} is no containers-policy.json(5)",
            resolution="every image is refused until it is one",
        ) from error
    return f"{where}, by default {kinds}"


def credentials(policy: ImagePolicy, registry: str) -> dict[str, Any]:
    """Those for a registry, if the operator has listed it; with mirrors, those of every registry
    that is listed, as any of them may be asked. ConfigError.
    """
    mirrored = policy.registries_conf is not None
    wanted = {
        name
        for name in policy.credential_registries
        if name == registry or (mirrored and registry)
    }
    if not wanted:
        return {}
    files = [policy.auth_file] if policy.auth_file else [Path(p) for p in LOGINS]
    found: dict[str, Any] = {}
    for path in files:
        if policy.auth_file is None and not path.is_file():
            continue
        for name, entry in _auths(path).items():
            host = name.removeprefix("https://").partition("/")[0]
            if _hub(host) in wanted:
                found.setdefault(name, entry)
    return found


def _hub(host: str) -> str:
    """Docker Hub's entry has its old name."""
    return "docker.io" if host == "index.docker.io" else host


def _auths(path: Path) -> dict[str, Any]:
    try:
        auths = json.loads(_read(path, "image_auth_file")).get("auths") or {}
        return dict(auths)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"image_auth_file: {path} is no containers-auth.json(5)",
            resolution="write it with podman login, or skopeo login",
        ) from error


def _registries(policy: ImagePolicy) -> Iterable[tuple[Path, bytes]]:
    """The operator's; else the host's, whose other files lie beside it."""
    if policy.registries_conf is not None:
        yield REGISTRIES, _read(policy.registries_conf, "image_registries_conf")
        return
    for path in (
        HOST_REGISTRIES,
        *sorted(HOST_REGISTRIES.with_suffix(".conf.d").glob("*.conf")),
        *sorted(HOST_REGISTRIES.with_name("registries.d").glob("*.yaml")),
    ):
        if path.is_file():
            yield path, _read(path, "image_registries_conf")


def _certificates(policy: ImagePolicy, registry: str) -> Files:
    """Of the registry: its CA, and the certificate that is shown to it."""
    found = []
    if policy.certificates is not None:
        found += _folder(policy.certificates / registry, CERTIFICATES)
    for place in _HOST_CERTIFICATES:
        found += _folder(place / registry, place / registry)
    return found


def _folder(source: Path, target: Path) -> Files:
    kinds = {".crt", ".cert", ".key"}
    paths = [path for path in sorted(source.glob("*")) if path.suffix in kinds]
    return [(target / path.name, _read(path, "image_certs_dir")) for path in paths]


def _keys(policy: bytes) -> Files:
    """Files with keys that a signature policy names."""
    try:
        document = json.loads(policy)
    except ValueError:
        return []  # skopeo says what is wrong with it
    named = dict.fromkeys(_named(document))
    return [(p, _read(p, "image_signature_policy")) for p in named if p.is_file()]


def _named(document: Any) -> Iterable[Path]:
    if isinstance(document, dict):
        for key, value in document.items():
            if isinstance(value, str) and key.lower().endswith("path"):
                yield Path(value)
            elif key == "keyPaths" and isinstance(value, list):
                yield from (Path(path) for path in value if isinstance(path, str))
            else:
                yield from _named(value)
    elif isinstance(document, list):
        for value in document:
            yield from _named(value)


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: {error.strerror}") from error
