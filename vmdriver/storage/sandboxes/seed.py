"""The seed disk: everything a guest is given, as a plain tar on a read-only raw disk.

What images/guest/init finds in it:

    init/environ                 the supervisor's environment, NAME=VALUE strings each
                                 ended by a NUL
    init/drop-in-environ         the same for init drop-ins
    init/uuid                    the machine's, as firmware would tell it
    init/mac init/address init/gateway    MAC; IPv4 address with prefix length; default route
    init/address6 init/gateway6  where there is IPv6: the address alone; the default route's, and
                                 its MAC, for which nobody is to be asked
    init/sandbox-uid init/sandbox-gid     for images without a user "sandbox"
    init/pids-max                most processes and threads of the workload
    init/volumes                 where there are some, a line each: serial, ro or rw, name, place
    init/folders                 where there are some of the host's, a line each: tag, ro or
                                 rw, place
    init/operator-exec           only where operators may run commands in the machine
    init/barrier                 only for a template, and then nothing but it and the ids:
                                 init waits to be adopted, and reads the disk again
    over/...                     put over the image's own: etc/hostname, hosts, resolv.conf,
                                 machine-id; opt/openshell (in memory) with auth/sandbox.jwt,
                                 tls/*, init.d/*, init.d.manifest
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from vmdriver.model.ids import host_mac
from vmdriver.model.plan import LaunchPlan

UNIT = 1024 * 1024
"""The disk's size is a multiple of this, so that a guest that has seen it once can be given
another content; what is not used is a hole.
"""
_SLACK = 64 * 1024
_OPENSHELL = "over/opt/openshell"
_MODES = {"over/etc/machine-id": 0o444, "init/uuid": 0o400}


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
    network = plan.network
    resolvers = "".join(f"nameserver {server}\n" for server in network.dns)
    if network.dns and network.search:
        resolvers += f"search {' '.join(network.search)}\n"
    drop_in_environment = {
        "PATH": "/bin:/sbin:/usr/bin:/usr/sbin",
        "ROOT_PREFIX": "/sysroot",
        "OPENSHELL_VM_INIT_PHASE": "before-supervisor",
        **plan.drop_in_environment,
    }
    return {
        "init/environ": environ_bytes(environment),
        "init/drop-in-environ": environ_bytes(drop_in_environment),
        "over/etc/machine-id": f"{plan.domain_uuid.replace('-', '')}\n".encode(),
        "init/uuid": f"{plan.domain_uuid}\n".encode(),
        "over/etc/hostname": f"{plan.hostname}\n".encode(),
        "over/etc/hosts": _host_lines(plan).encode(),
        "over/etc/resolv.conf": resolvers.encode(),
        "init/mac": f"{plan.network.lease.mac}\n".encode(),
        "init/address": f"{plan.network.guest_interface}\n".encode(),
        "init/gateway": f"{plan.network.lease.host_ip}\n".encode(),
        **_ipv6(plan),
        "init/pids-max": f"{plan.pids_max}\n".encode(),
        **({"init/operator-exec": b"1\n"} if plan.operator_exec else {}),
        **({"init/volumes": _volumes(plan)} if plan.volumes else {}),
        **({"init/folders": _folders(plan)} if plan.host_mounts else {}),
        **_ids(plan),
        "over/opt/openshell/init.d.manifest": "".join(
            f"{d.name}\n" for d in plan.drop_ins
        ).encode(),
    }


def _ipv6(plan: LaunchPlan) -> dict[str, bytes]:
    six = plan.network.ipv6
    if six is None:
        return {}
    gateway = f"{six.host_ip} {host_mac(plan.network.lease.mac)}"
    return {
        "init/address6": f"{six.guest_ip}\n".encode(),
        "init/gateway6": f"{gateway}\n".encode(),
    }


def _volumes(plan: LaunchPlan) -> bytes:
    return "".join(
        f"{volume.role} {'ro' if plan.disk(volume.role).read_only else 'rw'} {volume.name} "
        f"{volume.mount}\n"
        for volume in plan.volumes
    ).encode()


def _folders(plan: LaunchPlan) -> bytes:
    return "".join(
        f"{folder.tag} {'ro' if folder.read_only else 'rw'} {folder.mount}\n"
        for folder in plan.host_mounts
    ).encode()


def _ids(plan: LaunchPlan) -> dict[str, bytes]:
    return {
        "init/sandbox-uid": f"{plan.sandbox_uid}\n".encode(),
        "init/sandbox-gid": f"{plan.sandbox_gid}\n".encode(),
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
        # busybox's tar takes a directory's members only where it is one itself.
        for directory in ("init", "over", f"{_OPENSHELL}/init.d", f"{_OPENSHELL}/tls"):
            _add_directory(archive, directory, 0o755)
        _add_directory(archive, f"{_OPENSHELL}/auth", 0o700)
        for name, data in _plain_files(plan, environment).items():
            _add(archive, name, data, _MODES.get(name, 0o644))
        for drop_in in plan.drop_ins:
            _add(
                archive,
                f"{_OPENSHELL}/init.d/{drop_in.name}",
                drop_in.contents.encode(),
                0o755,
            )
        for name, data in secrets.files.items():
            _add(
                archive,
                f"{_OPENSHELL}/{name}",
                data,
                0o644 if name.endswith(".crt") else 0o600,
            )
    return buffer.getvalue()


def build_barrier(plan: LaunchPlan) -> bytes:
    """The same for a template: nothing of anybody's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add_directory(archive, "init", 0o755)
        for name, data in {"init/barrier": b"", **_ids(plan)}.items():
            _add(archive, name, data, 0o644)
    return buffer.getvalue()


def disk_bytes(content: int) -> int:
    """Size of a disk for that many bytes."""
    return -(-(content + _SLACK) // UNIT) * UNIT
