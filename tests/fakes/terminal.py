"""A real terminal for a program to write to and read from: tmux, with keys in and the screen out."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

CONFIGURATION = """
set -g status off
set -g remain-on-exit on
set -g history-limit 1000
set -s escape-time 0
"""


class Terminal:
    """One window in which a program runs."""

    def __init__(self, socket: Path, status: Path) -> None:
        self._socket, self._status = socket, status

    async def ask(self, *words: str) -> str:
        """What tmux answers to that command."""
        process = await asyncio.create_subprocess_exec(
            *("tmux", "-S", str(self._socket), *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        text = out.decode(errors="replace")
        assert process.returncode == 0, text
        return text

    async def press(self, *keys: str) -> None:
        """Keys as tmux names them: `q`, `Enter`, `C-c`, `Down`."""
        await self.ask("send-keys", *keys)

    async def type(self, text: str) -> None:
        """These very characters."""
        await self.ask("send-keys", "-l", text)

    async def lines(self, *, coloured: bool = False) -> list[str]:
        """The screen; with its escape sequences for colours, if they are asked for."""
        text = await self.ask("capture-pane", "-p", *(["-e"] if coloured else []))
        return text.split("\n")[:-1]

    async def shows(self, *texts: str, timeout_s: float = 30.0) -> list[str]:
        """Wait until all of these are on the screen; the screen."""

        def there(lines: Sequence[str]) -> bool:
            return all(any(text in line for line in lines) for text in texts)

        return await self.until(there, f"{texts}", timeout_s)

    async def hides(self, text: str, timeout_s: float = 30.0) -> list[str]:
        """Wait until that is not on it any more."""
        return await self.until(
            lambda lines: all(text not in line for line in lines),
            f"no {text!r}",
            timeout_s,
        )

    async def until(
        self,
        reached: Callable[[Sequence[str]], bool],
        what: str,
        timeout_s: float = 30.0,
    ) -> list[str]:
        """Wait until the screen is so; the screen."""
        lines: list[str] = []
        try:
            async with asyncio.timeout(timeout_s):
                while not reached(lines := await self.lines()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not {what}:\n" + "\n".join(lines)) from None
        return lines

    async def resize(self, columns: int, rows: int) -> None:
        """The window; tmux, when it is busy, may let one of these go by."""
        async with asyncio.timeout(30):
            while True:
                await self.ask("resize-window", "-x", str(columns), "-y", str(rows))
                asked = "#{pane_width} #{pane_height}"
                found = await self.ask("display-message", "-p", asked)
                if found.split() == [str(columns), str(rows)]:
                    return
                await asyncio.sleep(0.05)

    async def ended(self, timeout_s: float = 30.0) -> int:
        """Wait until the program has; its exit status. Not as tmux knows it: that may miss the end
        of a child.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not (
                    self._status.exists() and (text := self._status.read_text())
                ):
                    await asyncio.sleep(0.05)
                return int(text)
        except TimeoutError:
            lines = "\n".join(await self.lines())
            raise AssertionError(f"it goes on:\n{lines}") from None


@asynccontextmanager
async def terminal(
    directory: Path,
    command: Sequence[str],
    *,
    size: tuple[int, int] = (80, 24),
    kind: str = "xterm",
    environment: Sequence[str] = (),
) -> AsyncIterator[Terminal]:
    """Meanwhile that command runs in a terminal of that size, as `kind` in TERM."""
    configuration = directory / "tmux.conf"
    configuration.write_text(CONFIGURATION)
    status = directory / "status"
    status.unlink(missing_ok=True)
    window = Terminal(directory / "tmux.sock", status)
    start = [
        "env",
        *("-u", "COLUMNS", "-u", "LINES", "--default-signal=INT"),
        f"TERM={kind}",
        "LANG=C.UTF-8",
        *environment,
        *command,
    ]
    process = await asyncio.create_subprocess_exec(
        *("tmux", "-S", str(directory / "tmux.sock"), "-f", str(configuration)),
        *("new-session", "-d", "-x", str(size[0]), "-y", str(size[1])),
        f"{shlex.join(start)}; echo $? >{shlex.quote(str(status))}",
        env={k: v for k, v in os.environ.items() if k not in {"TMUX", "NO_COLOR"}},
    )
    assert await process.wait() == 0
    try:
        yield window
    finally:
        await window.ask("kill-server")
