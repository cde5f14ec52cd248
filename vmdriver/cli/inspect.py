"""vmdriver inspect: all that is on disk of one sandbox. Works without a running driver."""

from __future__ import annotations

from typing import Any

from vmdriver.cli.files import files_of, find
from vmdriver.cli.page import page, rendered
from vmdriver.cli.terminal import print_json, show
from vmdriver.cli.unread import as_document, read_state
from vmdriver.cli.waterfall import shown, taken
from vmdriver.config import Loaded
from vmdriver.errors import NotFound
from vmdriver.host import console_file
from vmdriver.hypervisor import qemu_process
from vmdriver.model.ids import domain_name
from vmdriver.model.record import utc_now
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.guest_report import read_report
from vmdriver.storage.sandboxes.records import read_record

_TIMED = {"name", "created_at", "steps"}


def _machine(loaded: Loaded, domain: str) -> dict[str, Any]:
    """Process of the machine, as the embedded libvirt noted it; needs no connection."""
    machines = Layout(loaded.config.driver.state_dir).libvirt / "run" / "qemu"
    pid = qemu_process.pid_of(machines, domain)
    if pid is None:
        return {"domain": domain, "running": False}
    return {"domain": domain, "running": True, "pid": pid}


def inspection(loaded: Loaded, sandbox_id: str) -> dict[str, Any]:
    """Everything on disk about one sandbox; the token is not among it. NotFound, Refused."""
    files = files_of(loaded, sandbox_id)
    state = read_state(files)
    record, lease = state.record, state.salvage.lease
    domain = domain_name(loaded.config.driver.instance, sandbox_id)
    if record is not None:
        domain, lease = record.plan.domain if record.plan else "", record.lease
    return {
        "record": record.model_dump(mode="json") if record else None,
        "unreadable": as_document(state),
        "ledger": [vars(entry) for entry in state.held.values()],
        "guest": vars(read_report(str(files.status))),
        "machine": _machine(loaded, domain) if domain else {"running": False},
        "addresses": lease.model_dump() if lease else None,
        "console_tail": console_file.tail(files.console),
        "directory": str(files.root),
    }


def inspect(loaded: Loaded, sandbox: str, *, as_json: bool) -> int:
    """Print it, as a page or as a document. `sandbox`: id or name."""
    sandbox_id = find(loaded, sandbox).root.name
    found = inspection(loaded, sandbox_id)
    if as_json:
        print_json(found)
    else:
        show(rendered(page(sandbox_id, found, utc_now())))
    return 0


def timing(loaded: Loaded, sandbox: str, *, as_json: bool) -> int:
    """Where the time of its last start went, and of each snapshot that was taken while it ran.
    NotFound before the first start that came up.
    """
    record = read_record(find(loaded, sandbox).root)
    found, snapshots = record.last_start, [s for s in record.snapshots if s.steps]
    if found is None:
        raise NotFound(
            f"no start of sandbox {record.id} was timed",
            resolution="see what it waits for: vmdriver inspect, without --timing",
        )
    if as_json:
        taken_in = [s.model_dump(mode="json", include=_TIMED) for s in snapshots]
        print_json({**found.model_dump(mode="json"), "snapshots": taken_in})
    else:
        print("\n\n".join([shown(found), *map(taken, snapshots)]))
    return 0
