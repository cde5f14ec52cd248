"""A driver on a fake host, served to other hosts: in this process, or as one of its own.

As a program: python -m tests.fakes.far_driver DIRECTORY HOST PORT CA CERTIFICATE KEY CRL CLIENT
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from tests.fakes.driver import FakeDriver
from tests.fakes.service import IDENTITY
from tests.fakes.world import World
from vmdriver.service.remote import Remote, serve_remote
from vmdriver.service.servicer import ComputeDriver, Readiness, register
from vmdriver.service.tls.address import Address
from vmdriver.service.tls.identity import Identity
from vmdriver.service.tls.keys import Keys, Side

ANY_PORT = Address("127.0.0.1", 0)


@asynccontextmanager
async def far_driver(
    directory: Path,
    keys: Keys,
    clients: Sequence[str] = ("gateway.test",),
    address: Address = ANY_PORT,
    world: World | None = None,
) -> AsyncIterator[tuple[FakeDriver, Remote]]:
    driver = FakeDriver(world or World())
    readiness = Readiness()
    service = ComputeDriver(IDENTITY, readiness, driver.broadcaster)
    path = directory / "run" / "tls.sock"
    identity = Identity(keys, Side.SERVER)
    remote = await serve_remote(
        address, identity, clients, path, partial(register, service)
    )
    await driver.manager.recover()
    readiness.set(driver.manager)
    try:
        yield driver, remote
    finally:
        driver.broadcaster.close()
        await remote.stop(0.2)
        await driver.close()


async def main() -> None:
    directory, host, port, ca, certificate, key, crl, client = sys.argv[1:]
    keys = Keys(Path(ca), Path(certificate), Path(key), Path(crl))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    where = Address(host, int(port))
    async with far_driver(Path(directory), keys, [client], where):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
