"""How fast packets leave by an interface: a token bucket as its root queue.

What waits is kept for a moment and then dropped, so that senders adapt: a TCP connection gets
nearly all of the rate. Not libvirt's <bandwidth>: it runs tc where libvirt is, not where the tap
is, needs more of the kernel (sfq, policing) and drops what a guest sends instead of delaying it.
"""

from __future__ import annotations

import errno
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from vmdriver.errors import NetworkError

_ROOT = 0xFFFFFFFF
_INGRESS = 0xFFFFFFF1
_HANDLE = 0x10000
_LEAST_BURST = 64 * 1024
"""Bytes: what an interface hands on at once."""
_BURST_S = 0.01
_LATENCY = "50ms"
_NO_BUCKET = {errno.ENOENT, errno.EOPNOTSUPP}


async def shape(netlink: Any, index: int, mbit_s: int | None) -> None:
    """Bound what leaves by that interface of the socket's namespace, or take the bound away (None).
    NetlinkError; NetworkError where the kernel has no token bucket.
    """
    if mbit_s is None:
        await _unbound(netlink, index)
        return
    rate = mbit_s * 1_000_000 // 8
    try:
        await netlink.tc(
            "replace",
            "tbf",
            index=index,
            handle=_HANDLE,
            parent=_ROOT,
            rate=rate,
            burst=max(_LEAST_BURST, int(rate * _BURST_S)),
            latency=_LATENCY,
        )
    except NetlinkError as error:
        if error.code not in _NO_BUCKET:
            raise
        raise NetworkError(
            "this kernel cannot limit a machine's network: it has no token bucket",
            detail=f"netlink error {error.code}",
            reason="RateLimitUnavailable",
            resolution="load the module sch_tbf, or set no max_net_mbit_s",
        ) from error


async def clear_queues(netlink: Any, index: int) -> None:
    """Take what others have queued packets by from that interface, and what they do to packets
    there; ours stays. NetlinkError.
    """
    found = [queue async for queue in await netlink.tc("dump", index=index)]
    for queue in found:
        ours = queue.get_attr("TCA_KIND") == "tbf" and queue["handle"] == _HANDLE
        at_top = queue["parent"] >= _INGRESS  # the rest goes with those
        if queue["index"] == index and queue["handle"] and at_top and not ours:
            await netlink.tc("del", index=index, parent=queue["parent"])


async def _unbound(netlink: Any, index: int) -> None:
    async for queue in await netlink.tc("dump", index=index):
        ours = queue.get_attr("TCA_KIND") == "tbf" and queue["handle"] == _HANDLE
        if ours and queue["index"] == index:
            await netlink.tc("del", index=index, parent=_ROOT)
