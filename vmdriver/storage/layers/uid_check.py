"""Whether machines can run as the host users that they are to have."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.host.users import access_list
from vmdriver.host.users import ids as users
from vmdriver.model.machine_uids import MachineUids
from vmdriver.storage.layers.machine_users import has_claims
from vmdriver.storage.layout import Layout

_FULL = {errno.ENOSPC, errno.EDQUOT}


def check_uids(layout: Layout, uids: MachineUids) -> ConfigError | None:
    """ConfigError where one of the numbers is somebody's on this host, where files cannot belong
    to it, or where there are no access lists. Blocking.

    Returned is the first of these where sandboxes have some of the numbers already, so that
    somebody has got his since: their machines are not to be without a driver. No more are given.
    """
    taken = None
    if found := users.others_between(uids.first, uids.last):
        taken = ConfigError(
            f"machine_uids {uids}: {found}",
            resolution=users.way_out(uids.last - uids.first + 1),
        )
        if not has_claims(str(layout.root), uids.first, uids.last):
            raise taken
    with _trial_file(layout.layers) as path:
        try:
            for number in (uids.first, uids.last):
                os.chown(path, number, number)
        except OSError as error:
            raise ConfigError(
                f"machine_uids {uids}: files cannot belong to them: {error.strerror}",
                resolution="in a container: map them into its user namespace, or name some "
                "that are (/proc/self/uid_map, gid_map)",
            ) from error
        try:
            access_list.allow(path, "r", uid=uids.last)
        except OSError as error:
            if error.errno in _FULL:
                return taken
            raise ConfigError(
                f"state_dir: its file system has no access lists: {error.strerror}",
                resolution="mount it with them (mount -o remount,acl), or choose a state_dir "
                "on ext4, xfs, btrfs or tmpfs",
            ) from error
    return taken


@contextlib.contextmanager
def _trial_file(folder: Path) -> Iterator[Path]:
    path = folder / ".uids"
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise ConfigError(
            f"state_dir: {path} cannot be made: {error.strerror}",
            resolution="choose a folder that can be written, on a disk with space",
        ) from error
    try:
        yield path
    finally:
        path.unlink()
