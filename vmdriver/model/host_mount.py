"""Folders of the host in machines: which ones an operator allows, what a request asks for, and what
a machine gets. Pure.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import field_validator, model_validator

from vmdriver.errors import InvalidRequest, Refused
from vmdriver.model import volume
from vmdriver.model.asked_objects import asked_objects, flag
from vmdriver.model.places import check_apart, lies_in
from vmdriver.model.spec import Frozen, SandboxSpec

KEY = SETTING = "host_mounts"
PATH = f"template.driver_config.{KEY}"
KNOWS = "host_mounts"
"""What a guest's boot files say that can mount them."""
MOST_OF_ONE = 8
"""Folders of one sandbox: each has a program of its own on the host."""
_LONGEST = 4095
_NEVER = ("/proc", "/sys", "/dev", "/run")
"""The kernel's, and where programs of the host meet: a folder of these is more than its files."""
SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "maxItems": MOST_OF_ONE,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["path", "mount"],
        "properties": {
            "path": {"type": "string", "pattern": "^/"},
            "mount": volume.SCHEMA["items"]["properties"]["mount"],
            "read_only": {"type": "boolean", "default": True},
        },
    },
    "description": f"folders of the host, of those in the operator's {SETTING} or within them",
}
"""JSON Schema of driver_config.host_mounts."""


def folder_path(text: object) -> str:
    """The path of a folder that may be given to a machine. ValueError.

    >>> folder_path("/srv/models")
    '/srv/models'
    """
    if not isinstance(text, str) or not text.startswith("/") or len(text) > _LONGEST:
        raise ValueError("must be an absolute path")
    # normpath keeps two slashes at the beginning, where the kernel sees one.
    normal = posixpath.normpath(text) == text and not text.startswith("//")
    if not normal or not text.isprintable():
        raise ValueError("must hold no . or .., no // and no unprintable character")
    if text == "/" or any(lies_in(text, top) for top in _NEVER):
        raise ValueError(f"{text} is the system's own")
    return text


class AllowedFolder(Frozen):
    """A folder that requests may name, with everything in it."""

    path: str
    read_only: bool = True
    user: str = ""
    """Account of the host as which it is read and written. "": each machine's own user, which may
    read what everybody may.
    """

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """In flags and the environment: PATH to read, PATH=USER to write as that user."""
        if not isinstance(value, str):
            return value
        path, writes, user = value.partition("=")
        return {"path": path, "user": user, "read_only": not writes}

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        return folder_path(value)

    @model_validator(mode="after")
    def _somebody_writes(self) -> Self:
        if self.user in {"root", "0"}:
            raise ValueError("user: no guest reads or writes the host as root")
        if not self.read_only and not self.user:
            raise ValueError(
                "one that may be written needs a user, whose what guests write becomes"
            )
        return self


class HostMountWish(Frozen):
    """One folder as a request asks for it."""

    path: str
    mount: str
    read_only: bool = True


class HostMount(Frozen):
    """A folder that a machine has."""

    tag: str
    """What its guest knows it by."""
    path: str
    allowed: str
    """The operator's folder that it is, or is in."""
    mount: str
    read_only: bool
    uid: int | None = None
    """Host user that reads and writes it. None: the machine's own."""
    gid: int | None = None
    socket: str
    """Where its QEMU reaches the program that does."""

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.path} at {self.mount}{' (read only)' if self.read_only else ''}"


def wishes_of(spec: SandboxSpec) -> tuple[HostMountWish, ...]:
    """What a request wants, sorted by where it is mounted. InvalidRequest, with the key's path."""
    asked = spec.driver_config.get(KEY, ())
    keys = HostMountWish.model_fields
    objects = asked_objects(asked, PATH, MOST_OF_ONE, keys, "a host folder")
    found = [_wish(each, path) for path, each in objects]
    found.sort(key=lambda wish: wish.mount)
    if found:
        volumes = [wish.mount for wish in volume.wishes_of(spec)]
        check_apart(PATH, [*(wish.mount for wish in found), *volumes])
    return tuple(found)


def _wish(value: Mapping[str, Any], path: str) -> HostMountWish:
    try:
        folder = folder_path(value.get("path"))
    except ValueError as error:
        raise InvalidRequest(f"{path}.path", str(error)) from error
    return HostMountWish(
        path=folder,
        mount=volume.check_mount(value.get("mount"), f"{path}.mount"),
        read_only=flag(value, "read_only", path, default=True),
    )


def allowed_for(wish: HostMountWish, allowed: Iterable[AllowedFolder]) -> AllowedFolder:
    """Which of the operator's folders that is, or is in: the innermost. Refused."""
    around = [folder for folder in allowed if lies_in(wish.path, folder.path)]
    if not around:
        raise Refused(
            f"{PATH}: {wish.path} may not be given to sandboxes",
            reason="HostMountNotAllowed",
            resolution=f"ask for another folder, or have the operator name it in {SETTING}",
        )
    found = max(around, key=lambda folder: len(folder.path))
    if found.read_only and not wish.read_only:
        raise Refused(
            f"{PATH}: {wish.path} may only be read",
            reason="HostMountReadOnly",
            resolution="ask for it with read_only, or have the operator allow more in "
            f"{SETTING}",
        )
    return found
