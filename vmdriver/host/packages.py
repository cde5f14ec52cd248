"""Which Debian package has a program that we run."""

from __future__ import annotations

PACKAGES = {
    "bwrap": "bubblewrap",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "nft": "nftables",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "readelf": "binutils",
    "patchelf": "patchelf",
    "ss": "iproute2",
    "nsenter": "util-linux",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "perl": "perl-base",
    "gcc": "gcc libc6-dev",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}


def way_to(program: str) -> str:
    """What to do where a program (its name or path) is missing."""
    name = program.rpartition("/")[2]
    package = PACKAGES.get(name)
    if package is None:
        return f"install the program {name}"
    return f"apt-get install {package}"
