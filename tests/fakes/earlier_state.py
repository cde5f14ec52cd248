"""A state directory that release 0.1.0 has left on a host (tests/fixtures/state-0.1.0), made again at another place."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from vmdriver.host import facts

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "state-0.1.0"
_DIGEST = re.compile(r"@SHA256:([^@]+)@")


class EarlierState:
    """Made below `root`. `boot_id`: of the host's boot in which it was left; the present one unless said otherwise.
    `only`: what begins like that.
    """

    def __init__(self, root: Path, *, boot_id: str = "", only: str = "") -> None:
        self.root = root
        self._boot_id = boot_id or facts.boot_id()
        self._template = ""
        self._digests: dict[str, str] = {}
        listed = json.loads((FIXTURE / "files.json").read_text())
        self._files = {name: what for name, what in listed.items() if only in name}
        self._template = self._template_key()
        self.host: dict[str, Any] = json.loads(
            self._text((FIXTURE / "host.json").read_text())
        )
        for name, what in self._files.items():
            self._make(self._text(name), name, what)
        for name, what in self._files.items():
            if "mode" in what:
                (root / self._text(name)).chmod(int(what["mode"], 8))
        self._identify()

    def _text(self, text: str) -> str:
        text = text.replace("@ROOT@", str(self.root))
        text = text.replace("@BOOT_ID@", self._boot_id)
        return text.replace("@TEMPLATE@", self._template)

    def _template_key(self) -> str:
        """As 0.1.0 named a template: a digest over what its guest has seen, paths of files among it."""
        name = "state/templates/@TEMPLATE@/manifest.json"
        manifest = json.loads(self._text((FIXTURE / "tree" / name).read_text()))
        plan = manifest["plan"]
        disks = {disk["role"]: disk for disk in plan["disks"]}
        inputs = {
            "format": 1,
            "image": plan["image_digest"],
            "base": disks["root"]["backing"][-1],
            "boot": plan["boot_digest"],
            "arguments": plan["kernel_arguments"],
            "supervisor": disks["supervisor"]["path"],
            "shape": [plan["vcpus"], plan["memory_mib"], plan["accelerator"]],
            "disk": disks["root"]["size_mib"],
            "ids": [plan["sandbox_uid"], plan["sandbox_gid"]],
            "versions": manifest["versions"],
            "workspace": manifest["workspace"],
        }
        text = json.dumps(inputs, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def _make(self, name: str, stored: str, what: dict[str, Any]) -> None:
        path = self.root / name
        if "directory" in what:
            path.mkdir(parents=True)
        elif "link" in what:
            path.symlink_to(self._text(what["link"]))
        elif "base64" in what:
            path.write_bytes(base64.b64decode(what["base64"]))
        elif "qcow2" in what:
            tick = self.host["written"].get(str(path), 0)
            layer = _layer(what["backing_format"], what["qcow2"], tick)
            path.write_bytes(_standing_on(layer, self._text(what["backing"])))
        else:
            text = what.get("text")
            if text is None:
                text = (FIXTURE / "tree" / stored).read_text()
            with path.open("wb") as file:
                file.write(self._text(text).encode())
                if "size" in what:
                    file.truncate(what["size"])

    def _identify(self) -> None:
        """Files have other inodes and times here; who names them by these, and by digests of that, is told."""
        state = self.root / "state"
        for path in state.glob("images/disks/*.json"):
            entry = json.loads(path.read_text())
            info = Path(entry["path"]).stat()
            entry["identity"] = [info.st_ino, info.st_size, info.st_mtime_ns]
            path.write_text(json.dumps(entry))
        for name in self._files:
            if name.endswith("/manifest.json") and "/not-restored/" not in name:
                self._identify_in(self.root / self._text(name), name)
        for path in state.glob("sandboxes/*/record.json"):
            text = path.read_text()
            path.write_text(_DIGEST.sub(lambda m: self._digests[m[1]], text))

    def _identify_in(self, path: Path, name: str) -> None:
        manifest = json.loads(path.read_text())
        for identity in manifest.get("files", []):
            info = Path(identity["path"]).stat()
            identity |= {
                "size": info.st_size,
                "inode": info.st_ino,
                "modified_ns": info.st_mtime_ns,
                "changed_ns": info.st_ctime_ns,
            }
        path.write_text(json.dumps(manifest, indent=1))
        self._digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _layer(backing_format: str, size: int, tick: int) -> bytes:
    """A layer as 0.1.0 made it, on something of that format, with what its guest has written."""
    with tempfile.TemporaryDirectory() as made:
        below, path = f"{made}/below", f"{made}/layer"
        create = ["qemu-img", "create", "-q", "-f"]
        subprocess.run([*create, backing_format, below, str(size)], check=True)
        standing = ["qcow2", "-b", below, "-F", backing_format]
        options = ["-o", "extended_l2=on,cluster_size=64k"]
        subprocess.run([*create, *standing, *options, path], check=True)
        if tick:
            write_tick(path, tick)
        return Path(path).read_bytes()


def _standing_on(layer: bytes, backing: str) -> bytes:
    """The same on another file: its header has the name's place and length at 8 and 16 (QEMU's docs/interop/qcow2.txt)."""
    place, old = (int.from_bytes(layer[a:b], "big") for a, b in ((8, 16), (16, 20)))
    name, found = backing.encode(), bytearray(layer)
    found[place : place + max(old, len(name))] = name.ljust(old, b"\0")
    found[16:20] = len(name).to_bytes(4, "big")
    return bytes(found)


def write_tick(layer: str, tick: int) -> None:
    """A guest has written that to its disk: 4 KiB at 1 MiB, each byte of them."""
    _qemu_io(layer, f"write -q -P {tick} 1M 4k")


def has_tick(layer: str, tick: int) -> bool:
    """Whether the guest would find that on its disk, whichever layer it is in."""
    return "Pattern verification failed" not in _qemu_io(layer, f"read -P {tick} 1M 4k")


def _qemu_io(layer: str, command: str) -> str:
    options = ["--force-share"] if command.startswith("read") else []
    if options:
        options.append("-r")
    return subprocess.run(
        ["qemu-io", *options, "-f", "qcow2", "-c", command, layer],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
