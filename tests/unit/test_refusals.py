"""What a registry's words mean."""

from __future__ import annotations

import pytest

from vmdriver.errors import CommandError, ImageError, NotFound, Refused
from vmdriver.oci.refusals import is_passing, translated

DIGEST = "f24c079f6d1e479e8f873090556009fdb247b755e70a6e5072240416ffec0c91"


@pytest.mark.parametrize(
    ("text", "kind", "passing"),
    [
        (f"Digest did not match, got sha256:{DIGEST}", ImageError, False),
        (f"blob {DIGEST[:20]}503eof: no space left on device", ImageError, False),
        ("manifest unknown: manifest unknown", NotFound, False),
        ("received unexpected HTTP status: 404 Not Found", NotFound, False),
        ("reading manifest: unauthorized: authentication required", Refused, False),
        ("requested access to the resource is denied", Refused, False),
        ("received unexpected HTTP status: 503 Service Unavailable", ImageError, True),
        ("pinging container registry: connection refused", ImageError, True),
        ("happened during read: unexpected EOF", ImageError, True),
        ("net/http: TLS handshake timeout", ImageError, True),
    ],
)
def test_a_failure_is_told_by_its_words_not_by_its_digests(
    text: str, kind: type[Exception], passing: bool
) -> None:
    error = CommandError("skopeo ended with status 1", detail=text)
    assert type(translated("docker://r.example/i:1", error)) is kind
    assert is_passing(error) is passing
