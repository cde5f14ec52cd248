"""An operator's TLS files, as openssl makes them: what is taken, what is refused and how that is said."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import resource
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.authority import Authority, chained
from vmdriver.cli.doctor.remote_findings import tls_findings
from vmdriver.errors import ConfigError
from vmdriver.service.tls.address import Address, parse_address
from vmdriver.service.tls.certificate import (
    admitted,
    crl_ends,
    own_certificate,
    validities,
)
from vmdriver.service.tls.context import context
from vmdriver.service.tls.identity import Identity
from vmdriver.service.tls.keys import Keys, Side

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = {"begin": "20200101000000Z", "end": "20210101000000Z"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture
def keys(authority: Authority, tmp_path: Path) -> Keys:
    """Files of this test's own."""
    name = f"host{len(list(authority.folder.iterdir()))}"
    made = authority.issue("host.test", Side.SERVER, name)
    for path in (made.ca, made.certificate, made.key, made.crl):
        assert path is not None
        shutil.copy(path, tmp_path)
    return Keys(
        tmp_path / "ca.crt",
        tmp_path / made.certificate.name,
        tmp_path / made.key.name,
        tmp_path / "crl.pem",
    )


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def encrypted(keys: Keys) -> None:
    command = ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", keys.key]
    done = subprocess.run(command, check=True, capture_output=True)
    keys.key.write_bytes(done.stdout)


STRANGER = ssl.DER_cert_to_PEM_cert(
    base64.b64decode(
        "MIIBfDCCASOgAwIBAgIUaE8MSiBop9E9usN5fi4JzN2DoUIwCgYIKoZIzj0EAwIwEzERMA8GA1UEAwwI"
        "c3RyYW5nZXIwIBcNMjYxMTI3MDEyMTE3WhgPMjEyNjExMDMwMTIxMTdaMBMxETAPBgNVBAMMCHN0cmFu"
        "Z2VyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEDLh0Kkc8eWjx0zNXxFLlb5rlhA68RXAk2ER7yICf"
        "XYk+RaDIWWGgVRiEm/9Gbs3rxipY4612YisrqJgzVlWN7aNTMFEwHQYDVR0OBBYEFDp3SMsbdXKuQ2/9"
        "e/lxrDPjmcvEMB8GA1UdIwQYMBaAFDp3SMsbdXKuQ2/9e/lxrDPjmcvEMA8GA1UdEwEB/wQFMAMBAf8w"
        "CgYIKoZIzj0EAwIDRwAwRAIgV6vzkXz0Tu73JoLEZhmCb03hovH6bKEYXq8PZ9BWOiECICaOeoWBcKVC"
        "6Qwzt7Da7lNe/QoeYYhsTpVrV/4EGcOx"
    )
)
"""Of an authority that is nobody's here."""
BROKEN: dict[str, tuple[Callable[[Keys], object], str, str]] = {
    "a key that a group reads": (lambda k: k.key.chmod(0o640), "tls_key", "chmod 0600"),
    "a key that all read": (lambda k: k.key.chmod(0o604), "tls_key", "chmod 0600"),
    "no key": (lambda k: k.key.unlink(), "tls_key", "put it there"),
    "an encrypted key": (encrypted, "tls_key", "without one"),
    "a folder": (
        lambda k: (k.certificate.unlink(), k.certificate.mkdir()),
        "tls_certificate",
        "set tls_certificate",
    ),
    "no certificate in it": (
        lambda k: k.certificate.write_text("x"),
        "tls_certificate",
        "anew",
    ),
    "an authority that is none": (
        lambda k: k.ca.write_bytes(k.certificate.read_bytes()),
        "tls_ca",
        "CA's own",
    ),
    "a pipe": (lambda k: pipe(k.ca), "tls_ca", "set tls_ca"),
    "a key that is a pipe": (lambda k: pipe(k.key), "tls_key", "set tls_key"),
    "an authority among the revocations": (
        lambda k: k.crl and k.crl.write_text(k.crl.read_text() + STRANGER),
        "tls_crl",
        "only lists",
    ),
    "no authority": (lambda k: k.ca.write_text(""), "tls_ca", "anew"),
    "no list": (
        lambda k: k.crl and k.crl.write_bytes(k.ca.read_bytes()),
        "tls_crl",
        "gencrl",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_files_that_cannot_be_used_are_refused_with_setting_and_way_out(
    keys: Keys, broken: str
) -> None:
    spoil, setting, way_out = BROKEN[broken]
    context(keys, Side.SERVER)
    spoil(keys)
    with pytest.raises(ConfigError) as caught:
        context(keys, Side.SERVER)
    assert caught.value.message.startswith(f"{setting}: ")
    assert way_out in caught.value.resolution
    assert "PRIVATE" not in caught.value.message + caught.value.detail


def test_another_ones_key_is_noticed(keys: Keys, authority: Authority) -> None:
    other = authority.issue("other.test", Side.SERVER, f"other-{keys.key.name}")
    with pytest.raises(ConfigError, match="tls_key: .* is not the key of"):
        context(replace(keys, key=other.key), Side.SERVER)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("expired", "has expired"),
        ("revoked", "revoked"),
        ("foreign", "unable to get local issuer"),
        ("of the other side", "unsuitable certificate purpose|unsupported"),
        ("with a list that has ended", "tls_crl: .*CRL has expired"),
        ("of tomorrow", "is not yet valid"),
        ("with a list of tomorrow", "tls_crl: .*CRL is not yet valid"),
        ("with a common name alone", "is for no name"),
    ],
)
@pytest.mark.parametrize("side", Side)
def test_what_the_other_end_would_refuse_is_said_before_it_does(
    tmp_path: Path, kind: str, text: str, side: Side
) -> None:
    """And does not keep the driver from starting: local gateways do without."""
    authority = Authority(tmp_path / "ca")
    match kind:
        case "expired":
            bad = authority.issue("a.test", side, **LONG_AGO)
        case "revoked":
            bad = authority.issue("a.test", side)
            authority.revoke(bad)
        case "foreign":
            other = Authority(tmp_path / "other").issue("a.test", side)
            bad = replace(other, ca=authority.ca, crl=authority.crl)
        case "of the other side":
            wrong = Side.CLIENT if side is Side.SERVER else Side.SERVER
            bad = authority.issue("a.test", wrong)
        case "of tomorrow":
            bad = authority.issue("a.test", side, begin=in_a_day())
        case "with a list of tomorrow":
            bad = authority.issue("a.test", side)
            tomorrow = ("-crl_lastupdate", in_a_day())
            authority.list_revoked(*tomorrow, "-crl_nextupdate", "20491231000000Z")
        case "with a common name alone":
            bad = authority.issue("a.test", side, named=False)
        case _:
            bad = authority.issue("a.test", side)
            long_ago = ("-crl_lastupdate", "20200101000000Z")
            authority.list_revoked(*long_ago, "-crl_nextupdate", "20200201000000Z")
    with pytest.raises(ConfigError, match=text) as caught:
        own_certificate(bad, side)
    assert ("clock" in caught.value.resolution) is ("tomorrow" in kind)
    (finding,) = tls_findings(bad, side)
    assert (finding.level, finding.blocks) == ("fail", False)
    assert finding.advice
    assert Identity(bad, side).context


def test_two_lists_of_one_name_are_told_apart_or_that_is_said(tmp_path: Path) -> None:
    """As while an authority is replaced by one of the same name."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    keys = old.issue("a.test", Side.SERVER)
    both = replace(keys, ca=tmp_path / "ca", crl=tmp_path / "crl")

    def join() -> Keys:
        both.ca.write_bytes(old.ca.read_bytes() + new.ca.read_bytes())
        (tmp_path / "crl").write_bytes(old.crl.read_bytes() + new.crl.read_bytes())
        return both

    assert own_certificate(join(), Side.SERVER)
    for one in (old, new):
        settings = one.folder / "ca.conf"
        bare = settings.read_text().replace("crl_extensions = list\n", "")
        settings.write_text(bare)
    old.list_revoked("-crl_lastupdate", "20260101000000Z", "-crldays", "9999")
    new.list_revoked()
    with pytest.raises(ConfigError, match="tls_crl: .*CRL signature failure") as caught:
        own_certificate(join(), Side.SERVER)
    assert "authorityKeyIdentifier" in caught.value.resolution


def in_a_day() -> str:
    return f"{datetime.now(UTC) + timedelta(days=1):%Y%m%d%H%M%S}Z"


@pytest.mark.parametrize("side", Side)
def test_an_authority_between_is_taken_where_all_of_the_chain_is_known(
    tmp_path: Path, side: Side
) -> None:
    root = Authority(tmp_path / "root")
    between = Authority(tmp_path / "between", root)
    keys = chained(root, between, side, "a.test")
    assert admitted(own_certificate(keys, side), ["a.test"])
    bare = between.issue("b.test", side)
    for wrong, way_out in (
        (replace(keys, ca=between.ca), "up to one that has signed itself"),
        (replace(bare, ca=root.ca, crl=keys.crl), "behind it, in the same file"),
        (replace(keys, crl=root.crl), "a list of each authority"),
    ):
        with pytest.raises(ConfigError) as caught:
            own_certificate(wrong, side)
        assert way_out in caught.value.resolution, caught.value
    root.revoke(replace(keys, certificate=between.ca))
    keys = chained(root, between, side, "c.test")
    with pytest.raises(ConfigError, match="revoked"):
        own_certificate(keys, side)


def test_ends_are_told_before_they_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "ca")
    end = datetime.now(UTC) + timedelta(days=10)
    keys = authority.issue("a.test", Side.SERVER, end=f"{end:%Y%m%d%H%M%S}Z")
    authority.list_revoked("-crldays", "5")
    found = {one.setting: one for one in validities(keys, Side.SERVER)}
    assert found["tls_certificate"].until == end.replace(microsecond=0)
    assert found["tls_certificate"].name == "a.test"
    levels = {f.check: f.level for f in tls_findings(keys, Side.SERVER)}
    assert levels == {
        "TLS: tls_certificate": "warn",
        "TLS: tls_ca": "ok",
        "TLS: tls_crl": "warn",
    }
    with caplog.at_level(logging.WARNING):
        Identity(keys, Side.SERVER)
    said = [r.getMessage().partition(":")[0] for r in caplog.records]
    assert sorted(said) == ["tls_certificate", "tls_crl"]
    without = replace(keys, crl=None)
    assert "nothing can be revoked" in [
        f.message for f in tls_findings(without, Side.SERVER)
    ]


@pytest.mark.parametrize("revoked", [0, 3])
def test_the_end_of_a_list_is_read_as_openssl_reads_it(
    tmp_path: Path, revoked: int
) -> None:
    authority = Authority(tmp_path / "ca")
    for number in range(revoked):
        authority.revoke(authority.issue(f"gone{number}.test", Side.CLIENT))
    for more in ((), ("-crl_nextupdate", "20600101000000Z")):
        authority.list_revoked(*more)
        command = ["openssl", "crl", "-noout", "-nextupdate", "-in", authority.crl]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        (found,) = crl_ends(authority.crl)
        read = said.stdout.strip().replace("GMT", "+0000")
        assert found == datetime.strptime(read, "nextUpdate=%b %d %H:%M:%S %Y %z")


def test_a_damaged_list_is_no_crash(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    whole = authority.crl.read_text().splitlines()
    path = tmp_path / "damaged.pem"
    for cut in range(1, len(whole)):
        path.write_text("\n".join([*whole[:cut], whole[-1]]) + "\n")
        with contextlib.suppress(ConfigError):
            list(crl_ends(path))


def test_files_that_change_are_taken_up_when_they_are_whole(
    keys: Keys, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    identity = Identity(keys, Side.SERVER)
    first = identity.context
    assert not identity.refresh()
    keys.key.chmod(0o644)
    keys.key.write_bytes(keys.key.read_bytes() + b"\n")
    assert not identity.refresh()
    assert identity.context is first
    assert "open to others" in caplog.text
    keys.key.chmod(0o600)
    keys.key.write_bytes(keys.key.read_bytes() + b"\n")
    assert not identity.refresh(), "the same authorities are trusted"
    assert identity.context is not first
    second = identity.context
    authority.list_revoked()
    assert keys.crl is not None
    shutil.copy(authority.crl, keys.crl)
    assert identity.refresh()
    assert identity.context is not second
    keys.crl.unlink()
    assert not identity.refresh(), "what has gone leaves the last one in force"


def test_a_mode_that_is_mended_is_enough(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """As the log says it: chmod changes neither what is in a file nor when it was written."""
    identity = Identity(keys, Side.SERVER)
    first = identity.context
    keys.key.chmod(0o644)
    keys.key.write_bytes(keys.key.read_bytes() + b"\n")
    for _ in range(3):
        assert not identity.refresh()
    assert caplog.text.count("open to others") == 1
    keys.key.chmod(0o600)
    identity.refresh()
    assert identity.context is not first


def test_a_list_is_taken_up_though_it_could_not_be_read_at_once(
    keys: Keys, authority: Authority
) -> None:
    identity = Identity(keys, Side.SERVER)
    authority.list_revoked()
    assert keys.crl is not None
    shutil.copy(authority.crl, keys.crl)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert not identity.refresh()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert identity.refresh()


@pytest.mark.parametrize("which", ["ca", "certificate", "key", "crl"])
def test_nobody_waits_for_a_pipe_in_the_place_of_a_file(
    keys: Keys, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    identity = Identity(keys, Side.SERVER)
    pipe(getattr(keys, which))
    waits = threading.Thread(target=identity.refresh, daemon=True)
    waits.start()
    waits.join(5)
    assert not waits.is_alive()
    assert "is not a plain file" in caplog.text


def test_only_whole_names_are_admitted() -> None:
    found = {"subjectAltName": (("DNS", "*.test"), ("DNS", "A.test"), ("URI", "x:y"))}
    assert admitted(found, ["b.test", "a.TEST"]) == "a.TEST"
    assert admitted(found, ["x:y"]) == "x:y"
    assert admitted(found, ["b.test"]) is None
    common = {"subject": ((("commonName", "b.test"),),)}
    assert admitted(common, ["b.test"]) is None
    assert admitted({}, ["b.test"]) is None


def test_addresses_are_read_as_written() -> None:
    assert parse_address("[::]:7443") == Address("::", 7443)
    assert str(parse_address("[fd00::1]:7443")) == "[fd00::1]:7443"
    for wrong in (
        "",
        "7443",
        "::1:7443",
        "host:",
        "host:0",
        "host:99999",
        "[a]:1",
        "a b:1",
    ):
        with pytest.raises(ValueError, match="HOST:PORT"):
            parse_address(wrong)


# --- the document's own commands


def blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text()
    found = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [block for block in found if "openssl" in block]


def test_the_documents_commands_make_what_both_ends_take(tmp_path: Path) -> None:
    authority, issue, revoke = blocks("docs/remote.md")

    def run(script: str, folder: Path = tmp_path) -> None:
        done = subprocess.run(
            ["sh", "-e", "-c", script], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def made(name: str, folder: Path = tmp_path) -> Keys:
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        return Keys(folder / "ca.crt", certificate, key, folder / "crl.pem")

    run(authority + issue)
    host, gateway = made("vmhost1.example.org"), made("gateway1.example.org")
    next_one = tmp_path / "next"
    next_one.mkdir()
    run(authority + issue, next_one)
    both = [tmp_path / "both.crt", tmp_path / "both.pem"]
    for kind, place in zip(("ca.crt", "crl.pem"), both, strict=True):
        texts = [(folder / kind).read_text() for folder in (tmp_path, next_one)]
        place.write_text("".join(texts))
    for keys in (host, made("vmhost1.example.org", next_one)):
        assert own_certificate(replace(keys, ca=both[0], crl=both[1]), Side.SERVER)
    assert admitted(own_certificate(host, Side.SERVER), ["vmhost1.example.org"])
    assert admitted(own_certificate(gateway, Side.CLIENT), ["gateway1.example.org"])
    assert [f.level for f in tls_findings(host, Side.SERVER)] == ["ok"] * 3
    with pytest.raises(ConfigError, match="purpose|unsupported"):
        own_certificate(host, Side.CLIENT)
    run(revoke)
    with pytest.raises(ConfigError, match="revoked"):
        own_certificate(gateway, Side.CLIENT)
    assert own_certificate(host, Side.SERVER)
