"""The seed disk: everything a guest is given, as a plain tar on a read-only raw disk.

What images/guest/init finds in it:

    environ                      the supervisor's environment, NAME=VALUE strings each
                                 ended by a NUL
    drop-in-environ              the same for init drop-ins
    hostname hosts resolv.conf   as they appear below /etc in the guest
    machine-id uuid              the machine's identity
    net/mac net/address net/gateway    MAC; IPv4 address with prefix length; default route
    sandbox-uid sandbox-gid      for images without a user "sandbox"
    openshell/...                copied to /opt/openshell: auth/sandbox.jwt, tls/*,
                                 init.d/*, init.d.manifest
    barrier                      only for a template, and then nothing but it and the ids:
                                 init waits to be adopted, and reads the disk again
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from vmdriver.model.plan import LaunchPlan

UNIT = 1024 * 1024
"""The disk's size is a multiple of this, so that a guest that has seen it once can be given
another content; what is not used is a hole.
"""
_SLACK = 64 * 1024


@dataclass(frozen=True)
class Secrets:
    """What must never be in a plan: file contents for the guest, by path below
    /opt/openshell.
    """

    files: Mapping[str, bytes]


def environ_bytes(environment: Mapping[str, str]) -> bytes:
    """NAME=VALUE strings, each ended by a NUL, sorted by name."""
    return b"".join(
        f"{name}={value}".encode() + b"\0"
        for name, value in sorted(environment.items())
    )


def _host_lines(plan: LaunchPlan) -> str:
    own = (
        f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {plan.hostname}\n"
    )
    return own + "".join(f"{address} {name}\n" for address, name in plan.hosts)


def _plain_files(plan: LaunchPlan, environment: Mapping[str, str]) -> dict[str, bytes]:
    resolvers = "".join(f"nameserver {server}\n" for server in plan.network.dns)
    drop_in_environment = {
        "PATH": "/bin:/sbin:/usr/bin:/usr/sbin",
        "ROOT_PREFIX": "/sysroot",
        "OPENSHELL_VM_INIT_PHASE": "before-supervisor",
        **plan.drop_in_environment,
    }
    return {
        "environ": environ_bytes(environment),
        "drop-in-environ": environ_bytes(drop_in_environment),
        "machine-id": f"{plan.domain_uuid.replace('-', '')}\n".encode(),
        "uuid": f"{plan.domain_uuid}\n".encode(),
        "hostname": f"{plan.hostname}\n".encode(),
        "hosts": _host_lines(plan).encode(),
        "resolv.conf": resolvers.encode(),
        "net/mac": f"{plan.network.lease.mac}\n".encode(),
        "net/address": f"{plan.network.guest_interface}\n".encode(),
        "net/gateway": f"{plan.network.lease.host_ip}\n".encode(),
        **_ids(plan),
        "openshell/init.d.manifest": "".join(
            f"{d.name}\n" for d in plan.drop_ins
        ).encode(),
    }


def _ids(plan: LaunchPlan) -> dict[str, bytes]:
    return {
        "sandbox-uid": f"{plan.sandbox_uid}\n".encode(),
        "sandbox-gid": f"{plan.sandbox_gid}\n".encode(),
    }


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(data))


def _add_directory(archive: tarfile.TarFile, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    entry.mode = mode
    archive.addfile(entry)


def build(plan: LaunchPlan, environment: Mapping[str, str], secrets: Secrets) -> bytes:
    """What is on the disk. `environment` is the plan's and what hooks added to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for directory in ("net", "openshell", "openshell/init.d", "openshell/tls"):
            _add_directory(archive, directory, 0o755)
        _add_directory(archive, "openshell/auth", 0o700)
        for name, data in _plain_files(plan, environment).items():
            _add(archive, name, data, 0o644)
        for drop_in in plan.drop_ins:
            _add(
                archive,
                f"openshell/init.d/{drop_in.name}",
                drop_in.contents.encode(),
                0o755,
            )
        for name, data in secrets.files.items():
            _add(
                archive,
                f"openshell/{name}",
                data,
                0o644 if name.endswith(".crt") else 0o600,
            )
    return buffer.getvalue()


def build_barrier(plan: LaunchPlan) -> bytes:
    """The same for a template: nothing of anybody's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in {"barrier": b"", **_ids(plan)}.items():
            _add(archive, name, data, 0o644)
    return buffer.getvalue()


def disk_bytes(content: int) -> int:
    """Size of a disk for that many bytes."""
    return -(-(content + _SLACK) // UNIT) * UNIT
