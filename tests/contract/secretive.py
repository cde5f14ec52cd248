"""A host with a secret in every place that can hold one, and what was packed of it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from tests.fakes.driver import spec
from vmdriver.cli.bundle.archive import TOP
from vmdriver.cli.bundle.disclosure import FIELDS
from vmdriver.model.checkpoint import MemoryManifest
from vmdriver.model.ids import domain_name
from vmdriver.model.record import (
    CONSOLE_FOLLOWS,
    NOT_SET_UP,
    SandboxRecord,
    utc_now,
)
from vmdriver.oci.cache import Entry
from vmdriver.storage.layout import Layout

MARK = "canary"
ROOT = Path(__file__).parents[2]
AT = "2026-11-27T07:00:00.000Z"


def canary(place: str) -> str:
    """A secret that is found wherever it went; long enough to be one."""
    return f"{MARK}-{place}-5f0e93f1c0ffee"


def filled(kind: type[BaseModel], place: str) -> dict[str, Any]:
    """Every field of that model that is withheld, with a canary in it, and in all that it holds."""
    found: dict[str, Any] = {}
    for name in FIELDS[kind][1].split():
        found[name] = _secret_of(kind.model_fields[name].annotation, f"{place}.{name}")
    for name in FIELDS[kind][0].split():
        for inner in get_args(kind.model_fields[name].annotation) or (
            kind.model_fields[name].annotation,
        ):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                many = get_origin(kind.model_fields[name].annotation) is tuple
                value = filled(inner, f"{place}.{name}")
                found[name] = [value] if many else value
    return found


def _secret_of(annotation: Any, place: str) -> Any:
    text = canary(place)
    if annotation is str or annotation is Any:
        return text
    if get_origin(annotation) is tuple:
        return [text]
    return {"NAME": text, "nested": {"deeper": [text]}}


def made_host(tmp_path: Path) -> tuple[Layout, list[str]]:
    """A state directory, and the flags that name it."""
    layout = Layout(tmp_path / "state")
    layout.make()
    now = utc_now()
    for name in ("s1", "s2"):
        record = SandboxRecord(spec=spec(name), created_at=now, changed_at=now)
        files = layout.sandbox(name)
        files.root.mkdir(mode=0o700)
        stored = record.model_dump(mode="json")
        merge(stored, filled(SandboxRecord, f"{name}.record"))
        tail = f"died{CONSOLE_FOLLOWS}\n{canary('console-in-message')}"
        if name == "s2":
            tail = f"{NOT_SET_UP} {canary('reason-in-message')}"
        stored["failure"] = {"reason": "MachineCrashed", "message": tail}
        files.record.write_text(json.dumps(stored))
        fill(files.root, name)
    elsewhere(layout)
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        state_dir = "{layout.root}"
        bind_socket = "{tmp_path}/run/d.sock"
        openshell_endpoint = "https://gateway.example.org:1"
        guest_tls_ca = "{tmp_path}/key"
        guest_tls_cert = "{tmp_path}/key"
        guest_tls_key = "{tmp_path}/key"
        image_auth_file = "{tmp_path}/auth.json"
        extensions = ["vault"]
        [extension.vault]
        address = "{canary("extension-table")}"
        [extension.vault.deep]
        list = ["{canary("extension-table-deep")}"]
        """
    )
    (tmp_path / "key").write_text(f"-----\n{canary('tls-key')}\n-----\n")
    auth = {"auths": {"registry": {"auth": "", "identitytoken": canary("registry")}}}
    (tmp_path / "auth.json").write_text(json.dumps(auth))
    return layout, ["--config", str(config)]


def merge(document: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict):
            merge(document[name], value)
        else:
            document[name] = value


def fill(folder: Path, name: str) -> None:
    """A sandbox's other files."""
    (folder / "token").write_text(canary(f"{name}.token"))
    (folder / "seed.img").write_text(canary("seed"))
    reason = canary("guests-words")
    (folder / "status.img").write_text(f"phase=failed\nreason={reason}\n")
    (folder / "console.log").write_text(f"login: {canary('console')}\n")
    (folder / "ledger.jsonl").write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"op": "intent", "key": "tap", "scope": "runtime", "data": {"tap": "t", "new": canary("ledger")}},
                {"op": "intent", "key": "hold:vault:lease:x", "scope": "persistent",
                 "data": {"extension": "vault", "kind": "lease", "name": "x", "undo": {"id": canary("undo")}}},
                {"op": "intent", "key": "stay-phases:vault", "scope": "persistent",
                 "data": {"extension": "vault", "saved": {"s": canary("saved")}}},
            )
        )
        + canary("torn-line")
    )  # fmt: skip
    own = folder / "extensions" / "vault"
    own.mkdir(parents=True)
    (own / canary("file-name")).write_text(canary("extensions-file"))
    for place in ("suspended", "mapped", "not-restored", "snapshots/one"):
        made = folder / place
        made.mkdir(parents=True)
        (made / "memory").write_text(canary("memory"))
        (made / "state").write_text(canary("state"))
        manifest = filled(MemoryManifest, f"{name}.{place.replace('/', '.')}")
        (made / "manifest.json").write_text(json.dumps(manifest))


def elsewhere(layout: Layout) -> None:
    """Everything of the state directory that is no sandbox's."""
    (layout.layers / "l.qcow2").write_text(canary("layer"))
    template = layout.templates / "k"
    template.mkdir()
    manifest = filled(MemoryManifest, "template")
    (template / "manifest.json").write_text(json.dumps(manifest))
    (template / "memory").write_text(canary("template-memory"))
    disks, tree = layout.images / "disks", layout.images / "trees" / "t"
    disks.mkdir()
    (tree / "root").mkdir(parents=True)
    (tree / "root" / canary("image-file-name")).write_text(canary("image-file"))
    (disks / "d.json").write_text(json.dumps(filled(Entry, "image")))
    (disks / "d.ext4").write_text(canary("base"))
    (tree / "source.json").write_text(json.dumps({"digest": "sha256:x"}))
    logs = layout.libvirt / "log" / "qemu"
    logs.mkdir(parents=True)
    said = f"qemu: fatal: {canary('s1.token')}\n"
    for name in ("s1", "s2"):
        (logs / f"{domain(layout, name)}.log").write_text(said)
    for place in (layout.probe, layout.warm, layout.supervisors, layout.boot):
        (place / "anything").write_text(canary(place.name))
    aside = layout.root / "set-aside"
    aside.mkdir()
    (aside / "token.0").write_text(canary("set-aside"))


def instance(layout: Layout) -> str:
    from vmdriver.config import load

    return load(
        flags={"state_dir": str(layout.root)}, environment={}
    ).config.driver.instance


def domain(layout: Layout, name: str) -> str:
    return domain_name(instance(layout), name)


def packed(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            assert entry.isreg()
            assert entry.mode == 0o600
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix(f"{TOP}/")] = file.read().decode()
        return found


WITHOUT_LIBVIRT = """
import sys
from vmdriver.cli.doctor import examination
from vmdriver.cli.main import main
async def examine(loaded):
    return []
examination.examine = examine
sys.exit(main(sys.argv[1:]))
"""
