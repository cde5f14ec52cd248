"""One end's files, followed while they change: a new connection is made with what is on disk now,
and one that is there lives no longer than what it was let in by.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from vmdriver.errors import ConfigError
from vmdriver.service.tls.certificate import Validity, validities
from vmdriver.service.tls.context import context, digest
from vmdriver.service.tls.keys import Keys, Side

_log = logging.getLogger(__name__)
LOOK_S = 2.0
SOON = timedelta(days=14)
"""Before the end of something, for whoever has to make a new one."""
_TELL_AGAIN = timedelta(days=1)


class Identity:
    """`context` is what holds now. Files that cannot be used leave the ones before in force, and
    are told in the log: they may be half written.
    """

    def __init__(self, keys: Keys, side: Side) -> None:
        """ConfigError for files that cannot be used at all; what has expired or is revoked is told,
        and only keeps connections from being made.
        """
        self.keys, self.side = keys, side
        # What changes between two of these is taken up at the next look.
        self._stamp = self._stamped()
        self._trust, self._own = self._digests()
        self.context: ssl.SSLContext = context(keys, side)
        self._unusable = ""
        """Why what is on disk now is not in force."""
        self._told_at: datetime | None = None
        self._tell_ends()

    async def follow(self, on_distrust: Callable[[], None]) -> None:
        """Look again and again, for ever. `on_distrust`: whom we trust is another question now, and
        who is connected has to be asked again.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            if self.refresh():
                on_distrust()
            self._tell_ends()

    def refresh(self) -> bool:
        """Take up what has changed. True: also in whom we trust. What cannot be used now is tried
        again each time: a mode or an owner is mended, and descriptors are free again, without any
        change of what is in the files.
        """
        stamp = self._stamped()
        if stamp == self._stamp:
            return False
        try:
            trust, own = self._digests()
            changed = (trust, own) != (self._trust, self._own)
            made = context(self.keys, self.side) if changed else self.context
        except (ConfigError, OSError) as error:
            text = error.text() if isinstance(error, ConfigError) else str(error)
            if text != self._unusable:
                _log.error("TLS files have changed and stay without effect: %s", text)
            self._unusable = text
            return False
        self._stamp, self._unusable = stamp, ""
        if not changed:
            return False
        distrust = trust != self._trust
        self._trust, self._own, self.context = trust, own, made
        self._told_at = None
        what = "authorities, revocations" if distrust else "certificate, key"
        _log.info("TLS files have changed and are in force: %s", what)
        return distrust

    def _digests(self) -> tuple[bytes, bytes]:
        try:
            return digest(self.keys.trust()), digest(self.keys.own())
        except OSError as error:
            raise ConfigError(
                f"TLS files: {error.filename} cannot be read: {error.strerror}",
                resolution="put it there, or set tls_ca, tls_certificate, tls_key or tls_crl to "
                "where it is",
            ) from error

    def _stamped(self) -> tuple[tuple[int, int, int] | None, ...]:
        found: list[tuple[int, int, int] | None] = []
        for _, path in (*self.keys.trust(), *self.keys.own()):
            try:
                info = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((info.st_ino, info.st_size, info.st_mtime_ns))
        return tuple(found)

    def _tell_ends(self) -> None:
        """Once a day, of what has ended or soon will."""
        now = datetime.now(UTC)
        if self._told_at is not None and now - self._told_at < _TELL_AGAIN:
            return
        self._told_at = now
        try:
            found = validities(self.keys, self.side)
        except (ConfigError, OSError) as error:
            text = error.text() if isinstance(error, ConfigError) else str(error)
            _log.error("no TLS connection can be made: %s", text)
            return
        for one in found:
            if one.until - now < SOON:
                _log.warning("%s", ending(one, now))


def ending(one: Validity, now: datetime) -> str:
    """For people.

    >>> ending(Validity("tls_ca", "a", datetime(2030, 1, 2)), datetime(2030, 1, 1))
    'tls_ca: a is good until 2030-01-02 00:00 UTC'
    """
    verb = "is good" if one.until > now else "was good"
    return f"{one.setting}: {one.name} {verb} until {one.until:%Y-%m-%d %H:%M} UTC"
