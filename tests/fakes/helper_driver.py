"""A process that runs helper programs as a driver does: `python -m tests.fakes.helper_driver STATE PROGRAM…`. Says "ready" when
its guardian has been begun; a tool's own end is told on its output.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from vmdriver.errors import DriverError
from vmdriver.host import process
from vmdriver.host.guardian import Charge
from vmdriver.host.guarding import Guardian
from vmdriver.host.lock import StateLock


async def main(state: Path, command: list[str]) -> None:
    lock = StateLock(state / "driver.lock")
    await lock.acquire()
    charge = Charge(state, state / "driver.lock", (str(state / "libvirt"),))
    await Guardian(charge).start()
    charge.end_predecessors()
    print("ready", flush=True)
    try:
        await process.run(command, deadline_s=600)
        print("ended", flush=True)
    except DriverError as error:
        print(f"failed: {error.text()}", flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
