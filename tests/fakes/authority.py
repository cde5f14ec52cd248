"""An operator's certificate authority, as docs/remote.md has it: openssl's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmdriver.service.tls.keys import Keys, Side

_SETTINGS = """\
[ca]
default_ca = own
[own]
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.crt
private_key = ca.key
default_md = sha256
default_crl_days = 30
policy = any
unique_subject = no
rand_serial = yes
crl_extensions = list
[list]
authorityKeyIdentifier = keyid:always
[any]
commonName = supplied
"""
_NEW_KEY = (
    "req -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -config req.conf".split()
)
_REQUEST = "[req]\ndistinguished_name = name\n[name]\n"
_SELF = "[req]\ndistinguished_name = name\nx509_extensions = ca\n[name]\n[ca]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\nsubjectKeyIdentifier = hash\n"


class Authority:
    """In a folder of its own. Paths that it answers with are of files that stay."""

    def __init__(self, folder: Path, above: Authority | None = None) -> None:
        """`above`: by whom it is signed; else by itself."""
        folder.mkdir(parents=True)
        self.folder = folder
        for name, text in (
            ("ca.conf", _SETTINGS),
            ("req.conf", _SELF),
            ("index.txt", ""),
        ):
            (folder / name).write_text(text)
        if above is None:
            self._openssl(
                *(*_NEW_KEY, "-x509", "-days", "30", "-subj", "/CN=test authority"),
                *("-keyout", "ca.key", "-out", "ca.crt"),
            )
        (folder / "req.conf").write_text(_REQUEST)
        if above is not None:
            request = ("-keyout", "ca.key", "-out", "request.csr")
            self._openssl(*_NEW_KEY, "-subj", f"/CN={folder.name}", *request)
            usage = "keyUsage = critical,keyCertSign,cRLSign\n"
            usage += (
                "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid:always\n"
            )
            extensions = f"basicConstraints = critical,CA:TRUE\n{usage}"
            above.sign(folder / "request.csr", folder / "ca.crt", extensions)
        self.list_revoked()

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def crl(self) -> Path:
        return self.folder / "crl.pem"

    def issue(
        self,
        name: str,
        side: Side | None,
        file: str = "",
        begin: str = "20200101000000Z",
        end: str = "20491231000000Z",
        named: bool = True,
    ) -> Keys:
        """For that DNS name (or what `name` says in openssl's words, as "IP:127.0.0.1"), and for that side; None: for
        neither. Its files are called `file`. The list of revocations is asked for. Not `named`: only the common
        name says whose it is.
        """
        kind = name if ":" in name else f"DNS:{name}"
        file = file or name.replace(":", "-")
        usage = side.usage if side is not None else "codeSigning"
        extensions = (
            f"basicConstraints = critical,CA:FALSE\nextendedKeyUsage = {usage}\n"
            "authorityKeyIdentifier = keyid:always\n"
        )
        if named:
            extensions += f"subjectAltName = {kind}\n"
        request = ("-keyout", f"{file}.key", "-out", "request.csr")
        self._openssl(*_NEW_KEY, "-subj", f"/CN={name}", *request)
        self.sign("request.csr", f"{file}.crt", extensions, begin, end)
        certificate, key = (self.folder / f"{file}.{kind}" for kind in ("crt", "key"))
        key.chmod(0o600)
        return Keys(self.ca, certificate, key, self.crl)

    def sign(
        self,
        request: object,
        certificate: object,
        extensions: str,
        begin: str = "20200101000000Z",
        end: str = "20491231000000Z",
    ) -> None:
        """Paths; `extensions` in openssl's words."""
        (self.folder / "extensions").write_text(extensions)
        self._openssl(
            *("ca", "-config", "ca.conf", "-batch", "-notext", "-in", request),
            *("-out", certificate, "-extfile", "extensions"),
            *("-startdate", begin, "-enddate", end),
        )

    def revoke(self, keys: Keys) -> None:
        """From now on, with a new list."""
        self._openssl("ca", "-config", "ca.conf", "-revoke", keys.certificate)
        self.list_revoked()

    def list_revoked(self, *arguments: str) -> None:
        """A new list, put into the place of the one before."""
        self._openssl(
            "ca", "-config", "ca.conf", "-gencrl", *arguments, "-out", "new.pem"
        )
        (self.folder / "new.pem").rename(self.crl)

    def _openssl(self, *arguments: object) -> None:
        command = ["openssl", *(str(argument) for argument in arguments)]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def chained(root: Authority, between: Authority, side: Side, name: str) -> Keys:
    """Signed by `between`, for those who know `root`: with both lists of revocations."""
    own = between.issue(name, side)
    chain, lists = (between.folder / f"{name}.{what}" for what in ("chain", "lists"))
    chain.write_bytes(own.certificate.read_bytes() + between.ca.read_bytes())
    lists.write_bytes(root.crl.read_bytes() + between.crl.read_bytes())
    return Keys(root.ca, chain, own.key, lists)
