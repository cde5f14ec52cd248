"""Proxies between this host and registries. What is in their addresses may be a secret: it goes to
skopeo in its environment, and into no command line, log or error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

_NAMES = ("http_proxy", "https_proxy", "no_proxy")
"""What skopeo obeys (Go's net/http), in small letters and in large ones."""
_HIDDEN = "***"


@dataclass(frozen=True)
class Proxies:
    """As an environment says them."""

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By name in small letters; what is not said is not in it."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        """Small letters win, as everywhere. HTTP_PROXY is none where a web server's request may
        have said it (CGI).
        """
        names = [name for name in _NAMES if name != "http_proxy"]
        large = {} if "REQUEST_METHOD" in environment else {"http_proxy": "HTTP_PROXY"}
        large |= {name: name.upper() for name in names}
        said = {
            n: environment.get(n) or environment.get(large.get(n, "")) for n in _NAMES
        }
        return cls({name: value for name, value in said.items() if value})

    def hidden(self, text: str) -> str:
        """The same text without what is secret in their addresses."""
        for secret in self._secrets():
            text = text.replace(secret, _HIDDEN)
        return text

    def _secrets(self) -> Iterator[str]:
        """Longest first: a login, and its password alone, as written and as meant."""
        found = set()
        for name in ("http_proxy", "https_proxy"):
            address = self.environment.get(name, "")
            login, at, _ = address.partition("://")[2].rpartition("@")
            if not at and "://" not in address:
                login, at, _ = address.rpartition("@")
            if at:
                found |= {login, login.partition(":")[2]}
        found |= {unquote(secret) for secret in found}
        yield from sorted((secret for secret in found if secret), key=len, reverse=True)


NONE = Proxies()
