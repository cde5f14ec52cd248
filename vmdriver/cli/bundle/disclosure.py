"""What of stored documents may leave the host, field by field: what is not listed does not. Pure.

A test compares the lists with the models: a new field is told or withheld on purpose, or it fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from vmdriver.lifecycle.extending.notes import is_extensions
from vmdriver.model.checkpoint import (
    FileIdentity,
    MemoryManifest,
    MemoryRef,
    Part,
    SeenAge,
    SnapshotEntry,
    Versions,
    VolumeCopy,
)
from vmdriver.model.devices import PassedFunction
from vmdriver.model.host_mount import HostMount
from vmdriver.model.image import ImageConfig
from vmdriver.model.ipv6 import Ipv6
from vmdriver.model.plan import (
    Disk,
    DropIn,
    LaunchPlan,
    Lease,
    MachineUser,
    MountedVolume,
    NetworkPlan,
    Processor,
)
from vmdriver.model.record import (
    COMMAND_FOLLOWS,
    CONSOLE_FOLLOWS,
    NO_BARRIER,
    NOT_SET_UP,
    REFUSED_TO,
    Change,
    ExtensionState,
    Failure,
    SandboxRecord,
)
from vmdriver.model.spec import Resources, SandboxSpec
from vmdriver.model.timing import StartTiming, TimedStep
from vmdriver.model.volume import Volume
from vmdriver.oci.cache import Entry, TreeEntry

WITHHELD = "[withheld]"
_FOLLOWS = re.compile(
    "|".join(
        (
            *map(re.escape, (CONSOLE_FOLLOWS, COMMAND_FOLLOWS, NOT_SET_UP, NO_BARRIER)),
            rf"{REFUSED_TO} [a-z]+:",
        )
    )
)
"""Behind the first of these, a message is withheld."""
FIELDS: Mapping[type[BaseModel], tuple[str, str]] = {
    SandboxRecord: (
        (
            "schema_version schema_minor spec intent phase created_at changed_at plan lease "
            "failure "
            "launches crash_restarts launch_retries host_boot_id unwind_reason extensions "
            "boot_seconds layers inherited_layers base image_digest image_config memory mapped "
            "snapshots note last_restore last_start reverting reverting_volumes cold "
            "network_broken held_for_network "
            "stop_anyway"
        ),
        "secrets_digest",
    ),
    SandboxSpec: (
        "id name namespace workspace image log_level tty resources",
        "environment command labels driver_config",
    ),
    Resources: ("cpu_millis memory_mib gpus", ""),
    Failure: ("reason message exit_code will_retry in_launch", ""),
    Change: ("field key extension", "value"),
    ExtensionState: ("active changes accepted ready_told returned", "parameters"),
    LaunchPlan: (
        (
            "schema_version sandbox_id domain domain_uuid accelerator vcpus cpu_quota_millis "
            "memory_mib kernel initramfs kernel_profile kernel_arguments boot_digest image "
            "image_digest image_config disks console network environment_by drop_ins devices "
            "passed volumes host_mounts required_features hostname hosts sandbox_uid sandbox_gid "
            "pids_max disk_iops disk_mib_s "
            "user wall processor translated_mib operator_exec template"
        ),
        "environment drop_in_environment",
    ),
    NetworkPlan: (
        (
            "lease gateway_port gateway_address dns search egress egress_allow egress_deny "
            "egress_only host_access host_alias pool "
            "denied_networks namespace moved max_connections mbit_s ipv6 no_ipv6"
        ),
        "",
    ),
    Lease: ("index host_ip guest_ip prefix_length mac tap", ""),
    Ipv6: ("pool host_ip guest_ip uplink_ip denied_networks", ""),
    Disk: ("role path format read_only backing size_mib", ""),
    DropIn: ("name extension", "contents"),
    MountedVolume: ("role workspace name mount may_be_made", ""),
    HostMount: ("tag path allowed mount read_only uid gid socket", ""),
    MachineUser: ("uid gid", ""),
    PassedFunction: ("address group driver override given bar_mib", ""),
    Processor: ("model microcode flags", ""),
    ImageConfig: ("user working_directory", "environment entrypoint command"),
    MemoryRef: ("directory digest kind name stored_bytes consumed", ""),
    SnapshotEntry: ("name created_at layers memory age disk_bytes steps volumes", ""),
    VolumeCopy: ("name size_mib path stored_bytes", ""),
    SeenAge: ("seconds boot_id uptime_s", ""),
    StartTiming: ("kind at steps", ""),
    TimedStep: ("name begun_ms ended_ms", ""),
    MemoryManifest: (
        (
            "schema_version kind name sandbox_id workspace created_at host_boot_id guest_boot_id "
            "spec plan versions cpu boot_digest supervisor_digest files parts token_expires_at"
        ),
        "secrets_digest extensions",
    ),
    Part: ("name size stored", "digests"),
    FileIdentity: ("path size inode modified_ns changed_ns", ""),
    Versions: ("hypervisor libvirt machine", ""),
    Entry: (
        (
            "schema_version path digest references config layers stored_bytes virtual_bytes "
            "created "
            "identity content"
        ),
        "",
    ),
    TreeEntry: ("schema_version digest references stored_bytes", ""),
    Volume: ("schema_version workspace name size_mib created_at attached", ""),
}
"""Of each model what is told, and what is not. A field that holds models is told by their lists."""

SETTINGS_TOLD = (
    "state_dir instance admin_socket connection qemu_user qemu_group accelerator "
    "probe_deadline_s log_level log_format metrics_listen bind_socket openshell_endpoint "
    "bind_tls tls_ca tls_certificate tls_key tls_crl tls_clients "
    "driver_name gateway_manages_lifecycle expected_peer_pid guest_tls_ca guest_tls_cert "
    "guest_tls_key allow_same_uid_peer bootstrap_image krun_log_level otlp_endpoint vcpus mem_mib "
    "max_vcpus max_mem_mib max_sandboxes max_committed_mem_mib boot_timeout_s stop_grace_s on_stop "
    "crash_restarts passthrough_devices host_mounts "
    "on_restore_failure freeze_timeout_s restore_timeout_s restore_retry_s "
    "max_snapshots max_snapshot_mib max_host_snapshots max_host_snapshot_mib "
    "live_snapshots snapshot_retention_days max_layers max_workspace_volumes_mib max_volumes_mib "
    "templates_enabled templates_scope warm_pool "
    "warm_pool_memory_mib egress egress_allow egress_deny egress_ipv6 "
    "host_access host_alias address_pool address_pool_ipv6 dns dns_without_egress "
    "isolation machine_uids max_connections max_disk_iops max_disk_mib_s max_net_mbit_s "
    "machine_cgroup default_image overlay_disk_mib max_disk_mib insecure_registries "
    "allowed_image_dirs allowed_images local_image_stores image_auth_file credential_registries "
    "image_registries_conf image_signature_policy image_certs_dir image_refresh_s max_image_mib "
    "max_image_files image_cache_mib image_cache_days image_free_floor_mib "
    "prefetch_default_image supervisor_path supervisor_image sandbox_uid sandbox_gid pids_max "
    "telemetry operator_exec boot_files extensions request_parameters"
)
"""Paths of keys and credentials are told, not what is in them."""
SETTINGS_WITHHELD = "extension"
"""The extensions' own tables: names of their keys are told."""
_ADDRESSES = {"connection", "openshell_endpoint", "otlp_endpoint"}
LEDGER_DATA = frozenset(
    {
        *(
            "path",
            "seed",
            "tap",
            "mark",
            "guest_ip",
            "namespace",
            "domain",
            "directory",
        ),
        *("running", "meanwhile", "uid", "functions", "ids", *Lease.model_fields),
    }
)
"""What entries of the machine's own say; those of extensions say nothing but their names."""


def told(kind: type[BaseModel]) -> frozenset[str]:
    """Fields of that model that are told."""
    return frozenset(FIELDS[kind][0].split())


def disclosed(kind: type[BaseModel], document: Any) -> Any:
    """A stored document of that model, readable by its release or not, without what is withheld.
    What is there and no field of ours is withheld too.
    """
    if not isinstance(document, Mapping):
        return withheld(document)
    fields = told(kind)
    return {
        str(name): _field(kind, name, value) if name in fields else withheld(value)
        for name, value in document.items()
    }


def _field(kind: type[BaseModel], name: str, value: Any) -> Any:
    inner = _model_in(kind.model_fields[name].annotation)
    if inner is None:
        return plain(value)
    if isinstance(value, list):
        return [disclosed(inner, item) for item in value]
    return None if value is None else disclosed(inner, value)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Of a field; None where it holds none."""
    return next(_models_in(annotation), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def plain(value: Any) -> Any:
    """What is told, but for a guest's output in it."""
    if isinstance(value, str):
        return without_console(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def withheld(value: Any) -> Any:
    """What stands for it: names of keys, how many, or that there is something."""
    if isinstance(value, Mapping):
        return {str(name): WITHHELD for name in value}
    if isinstance(value, list | tuple):
        return f"{WITHHELD[:-1]}: {len(value)}]"
    return value if value is None or value == "" else WITHHELD


def without_console(text: str) -> str:
    """A message without a guest's output or words, or an operator's command, which it may end
    with.
    """
    found = _FOLLOWS.search(text)
    return f"{text[: found.end()]} {WITHHELD}" if found else text


def disclosed_entry(line: Any) -> Any:
    """One line of a ledger."""
    if not isinstance(line, Mapping):
        return withheld(line)
    shown = {k: plain(line[k]) for k in ("op", "key", "scope") if k in line}
    if "data" not in line:
        return shown
    data, fields = line["data"], LEDGER_DATA
    if not isinstance(data, Mapping):
        return {**shown, "data": withheld(data)}
    if is_extensions(str(line.get("key", ""))):
        fields = frozenset({"extension"})
    return {
        **shown,
        "data": {str(k): v if k in fields else withheld(v) for k, v in data.items()},
    }


def disclosed_setting(key: str, value: Any) -> Any:
    """One setting's value."""
    if key in SETTINGS_WITHHELD.split():
        tables = value if isinstance(value, Mapping) else {}
        return {name: withheld(table) for name, table in tables.items()}
    if key not in SETTINGS_TOLD.split():
        return withheld(value)
    return _without_login(value) if key in _ADDRESSES else value


def _without_login(value: Any) -> Any:
    """An address without user, password and parameters."""
    try:
        found = urlsplit(str(value))
    except ValueError:
        return withheld(value)
    if "@" not in found.netloc and not found.query:
        return value
    host = found.netloc.rpartition("@")[2]
    return urlunsplit((found.scheme, host, found.path, "", ""))
