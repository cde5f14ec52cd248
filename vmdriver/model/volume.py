"""Volumes: disks with a name that outlive sandboxes. What a request says of them, what is known of
each, and who may have one. Pure.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from vmdriver.errors import InvalidRequest
from vmdriver.model.asked_objects import asked_objects, flag
from vmdriver.model.places import check_apart, lies_in
from vmdriver.model.spec import Frozen, SandboxSpec

MIN_MIB, MOST_MIB = 16, 64 * 2**20
"""Sizes: room for a file system with a journal; what ext4 takes without further ado."""
MOST_OF_ONE = 8
"""Volumes of one sandbox."""
PATH = "template.driver_config.volumes"
NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
_NAME = re.compile(NAME)
_MOUNT = re.compile(r"(/[A-Za-z0-9._@+-]{1,64}){1,16}")
_NO_TREE = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/etc", "/boot", "/root"),  # noqa: S108
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/opt/openshell", "/var/run"),
)
"""Init's, the supervisor's and what the supervisor, which is root, runs: a workload that could
write there would be root, too.
"""
_NO_PLACE = ("/opt", "/var")
SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "maxItems": MOST_OF_ONE,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "mount"],
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME}$"},
            "mount": {"type": "string", "pattern": f"^{_MOUNT.pattern}$"},
            "size_mib": {"type": "integer", "minimum": MIN_MIB, "maximum": MOST_MIB},
            "read_only": {"type": "boolean"},
        },
    },
    "description": "disks of the workspace's that outlive the sandbox; one that is not there yet "
    "is made with size_mib",
}
"""JSON Schema of driver_config.volumes."""


class Wish(Frozen):
    """One volume as a request asks for it."""

    name: str
    mount: str
    """Where the guest has it: an absolute path without links."""
    size_mib: int | None = None
    """Of one that is made; of one that is there, the least that will do."""
    read_only: bool = False


class Volume(Frozen):
    """One that there is: its volume.json."""

    schema_version: Literal[1] = 1
    workspace: str
    name: str
    size_mib: int
    created_at: datetime
    attached: Mapping[str, bool] = {}
    """Ids of sandboxes whose machine, or kept memory, has it; whether only to read."""

    @property
    def id(self) -> str:
        """Of its folder."""
        return volume_id(self.workspace, self.name)

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.workspace}/{self.name}" if self.workspace else self.name

    def with_sandbox(self, sandbox_id: str, *, read_only: bool) -> Volume:
        """The same, had by that sandbox too."""
        return self.model_copy(
            update={"attached": {**self.attached, sandbox_id: read_only}}
        )

    def without_sandbox(self, sandbox_id: str) -> Volume:
        """The same, not had by that sandbox."""
        left = {k: v for k, v in self.attached.items() if k != sandbox_id}
        return self.model_copy(update={"attached": left})


def volume_id(workspace: str, name: str) -> str:
    """A folder's name: a workspace may be called anything.

    >>> volume_id("team", "data") == volume_id("team", "data") != volume_id("", "data")
    True
    """
    return hashlib.sha256(f"{workspace}\0{name}".encode()).hexdigest()[:32]


def check_name(name: Any, field: str) -> str:
    """InvalidRequest unless it may be a volume's name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            field,
            "is not a volume's name: small letters, digits, . _ -, at most 63, a letter or "
            "digit first",
        )
    return name


def check_size(size_mib: Any, field: str) -> int:
    """InvalidRequest unless it may be a volume's size."""
    if not isinstance(size_mib, int) or isinstance(size_mib, bool):
        raise InvalidRequest(field, "must be a whole number of MiB")
    if not MIN_MIB <= size_mib <= MOST_MIB:
        raise InvalidRequest(
            field, f"{size_mib} MiB are not within {MIN_MIB} and {MOST_MIB}"
        )
    return size_mib


def check_mount(mount: Any, field: str) -> str:
    """InvalidRequest unless a volume may be mounted there.

    >>> check_mount("/data/models", "mount")
    '/data/models'
    """
    if not isinstance(mount, str) or not _MOUNT.fullmatch(mount):
        raise InvalidRequest(
            field, "must be an absolute path of letters, digits, . _ @ + - and /"
        )
    if posixpath.normpath(mount) != mount:
        raise InvalidRequest(field, "must not hold . or ..")
    taken = [top for top in _NO_TREE if lies_in(mount, top)]
    if taken or mount in _NO_PLACE:
        raise InvalidRequest(
            field,
            f"{mount} is the system's own",
            resolution="choose another place, such as /data or one below /sandbox",
        )
    return mount


def wishes_of(spec: SandboxSpec) -> tuple[Wish, ...]:
    """What a request wants, sorted by where it is mounted. InvalidRequest, with the key's path."""
    asked = spec.driver_config.get("volumes", ())
    objects = asked_objects(asked, PATH, MOST_OF_ONE, Wish.model_fields, "a volume")
    found = [_wish(each, path) for path, each in objects]
    found.sort(key=lambda wish: wish.mount)
    if len({wish.name for wish in found}) < len(found):
        raise InvalidRequest(PATH, "names one volume twice")
    check_apart(PATH, [wish.mount for wish in found])
    return tuple(found)


def _wish(value: Mapping[str, Any], path: str) -> Wish:
    size = value.get("size_mib")
    return Wish(
        name=check_name(value.get("name"), f"{path}.name"),
        mount=check_mount(value.get("mount"), f"{path}.mount"),
        size_mib=None if size is None else check_size(size, f"{path}.size_mib"),
        read_only=flag(value, "read_only", path, default=False),
    )
