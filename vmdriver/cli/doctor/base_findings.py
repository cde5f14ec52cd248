"""What `vmdriver doctor --compose` says: of a composed driver's base, and of the way to it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.cli.doctor.finding import Finding, failed
from vmdriver.cli.doctor.remote_findings import tls_findings
from vmdriver.cli.doctor.showing import shown
from vmdriver.compose.app import tunnel_of
from vmdriver.compose.base import Asked, Base, BaseRejected
from vmdriver.compose.config import ComposeConfig, load
from vmdriver.errors import DriverError
from vmdriver.service.tls.keys import Side

_WAIT_S = 10.0


async def base_findings(config: ComposeConfig) -> AsyncIterator[Finding]:
    """Beside a composed driver that runs, too: the way is one of our own."""
    keys = config.keys()
    if keys is not None:
        for finding in tls_findings(keys, Side.CLIENT):
            yield finding
    try:
        with tempfile.TemporaryDirectory(prefix="vmdriver-") as folder:
            yield await _asked(config, Path(folder))
    except DriverError as error:
        yield failed("base", error)


async def _asked(config: ComposeConfig, folder: Path) -> Finding:
    tunnel = tunnel_of(config, folder / "base.sock")
    base = Base(config.base, min(_WAIT_S, config.base_wait_s), tunnel=tunnel)
    try:
        if tunnel is not None:
            await tunnel.start()
        raw = await base.call("GetCapabilities", b"", Asked(timeout_s=_WAIT_S))
    except BaseRejected as error:
        return Finding("base", "fail", f"{config.base}: {error}")
    finally:
        await base.close()
        if tunnel is not None:
            await tunnel.close()
    said = pb.GetCapabilitiesResponse.FromString(raw)
    text = f"{said.driver_name} {said.driver_version} answers on {config.base}"
    return Finding("base", "ok", text)


def doctor_of_compose(file: Path | None, *, as_json: bool) -> int:
    """As `doctor`: 0; 1 where the base cannot be used; 3 where something is to be looked at."""
    config = load(file, {})

    async def examine() -> list[Finding]:
        return [finding async for finding in base_findings(config)]

    return shown(asyncio.run(examine()), as_json=as_json)
