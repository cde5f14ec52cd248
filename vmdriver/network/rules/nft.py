"""Runs nft."""

from __future__ import annotations

import contextlib
import json

from vmdriver.errors import CommandError, NetworkError
from vmdriver.host import process
from vmdriver.host.confined import netns

DEADLINE_S = 15.0
_TRIES = 3
_OURS = "vmdriver_"


async def load(text: str, namespace: str | None = None) -> None:
    """Change tables, all or nothing, in the network namespace of that name; None: in the host's.
    NetworkError.
    """
    where = [] if namespace is None else ["nsenter", f"--net={netns.path(namespace)}"]
    try:
        await process.run(
            [*where, "nft", "-f", "-"],
            stdin=text.encode(),
            deadline_s=DEADLINE_S,
            tries=_TRIES,  # it does all or nothing, and may do it twice
        )
    except CommandError as error:
        raise NetworkError(
            f"the firewall table could not be changed: {error}", detail=error.detail
        ) from error


async def tables() -> list[tuple[str, str]]:
    """The host's tables that have names of ours, each with its comment. nft's JSON leaves comments
    out before 1.0.8, so read its text. CommandError.
    """
    listing = await process.run(
        ["nft", "-j", "list", "tables", "inet"], deadline_s=DEADLINE_S, tries=_TRIES
    )
    names = [
        o["table"]["name"]
        for o in json.loads(listing.stdout)["nftables"]
        if "table" in o
    ]
    found = []
    for name in names:
        if not name.startswith(_OURS):
            continue
        with contextlib.suppress(CommandError):  # removed meanwhile
            text = await process.run(
                ["nft", "list", "table", "inet", name],
                deadline_s=DEADLINE_S,
                tries=_TRIES,
            )
            found.append((name, _comment(text.stdout.decode())))
    return found


def _comment(table_text: str) -> str:
    for line in table_text.splitlines()[1:3]:
        words = line.strip()
        if words.startswith('comment "'):
            return words.removeprefix('comment "').removesuffix('"')
    return ""


async def dropping_chains() -> list[str]:
    """The host's chains that drop forwarded packets by policy, as family, table and name.
    CommandError.
    """
    listing = await process.run(["nft", "-j", "list", "chains"], deadline_s=DEADLINE_S)
    chains = [
        o["chain"] for o in json.loads(listing.stdout)["nftables"] if "chain" in o
    ]
    return [
        f"{c['family']} {c['table']} {c['name']}"
        for c in chains
        if c.get("hook") == "forward" and c.get("policy") == "drop"
    ]
