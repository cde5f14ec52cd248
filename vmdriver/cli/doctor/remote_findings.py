"""What `vmdriver doctor` says of gateways, and of base drivers, on other hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from vmdriver.cli.doctor.finding import Finding, failed
from vmdriver.config import Config
from vmdriver.config.views import settings_from, tls_keys
from vmdriver.errors import DriverError
from vmdriver.service.tls.certificate import Validity, validities
from vmdriver.service.tls.identity import SOON, ending
from vmdriver.service.tls.keys import Keys, Side
from vmdriver.service.way_back import WayBack

_RENEW = {
    "tls_certificate": "have a new one signed; it is taken up without a restart",
    "tls_ca": "add the new authority's certificate to the file first, then have new ones signed",
    "tls_crl": "write a new list (openssl ca -gencrl); it is taken up without a restart",
}


async def remote_findings(config: Config) -> AsyncIterator[Finding]:
    """Nothing where no other host is served. What fails keeps no machine from starting."""
    keys = tls_keys(config)
    if keys is None:
        return
    for finding in tls_findings(keys, Side.SERVER):
        yield finding
    names = ", ".join(config.remote.tls_clients)
    yield Finding("remote callers", "ok", f"{config.remote.bind_tls}, for {names}")
    settings = settings_from(config)
    way = await WayBack(settings.endpoint, settings.tls).look()
    check = "way to the gateway"
    if way.gateway:
        yield Finding(check, "ok", way.text)
    else:
        level = "warn" if way.open else "fail"
        yield Finding(check, level, way.text, way.advice, machines_start=True)


def tls_findings(keys: Keys, side: Side) -> Iterator[Finding]:
    """Of the files of one end: whether the other would take them, and how long it will."""
    try:
        found = validities(keys, side)
    except DriverError as error:
        told = failed("TLS", error)
        yield replace(told, machines_start=True)
        return
    now = datetime.now(UTC)
    for one in found:
        yield _finding(one, now)
    if keys.crl is None:
        advice = (
            "set tls_crl: without it a stolen key is good until its certificate ends"
        )
        yield Finding("TLS: tls_crl", "warn", "nothing can be revoked", advice)


def _finding(one: Validity, now: datetime) -> Finding:
    check, text = f"TLS: {one.setting}", ending(one, now).partition(": ")[2]
    if one.until - now >= SOON:
        return Finding(check, "ok", text)
    level = "warn" if one.until > now else "fail"
    return Finding(check, level, text, _RENEW[one.setting], machines_start=True)
