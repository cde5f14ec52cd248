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
    "zstd": "zstd",
    "ss": "iproute2",
    "nsenter": "util-linux",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "perl": "perl-base",
    "gcc": "gcc libc6-dev",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}


_MODULES = {"libvirt", "libvirt_qemu", "libvirtmod", "libvirtmod_qemu"}


def way_to_module(error: ImportError) -> str:
    """What to do where a module of Python's cannot be loaded: libvirt's are this host's, the others
    came with us.
    """
    if error.name in _MODULES:
        return "apt-get install python3-libvirt, or in a checkout: scripts/prepare-host"
    return "install vmdriver's package again, or in a checkout: scripts/prepare-host"


def way_to(program: str) -> str:
    """What to do where a program (its name or path) is missing."""
    name = program.rpartition("/")[2]
    package = PACKAGES.get(name)
    if package is None:
        return f"install the program {name}"
    return f"apt-get install {package}"
