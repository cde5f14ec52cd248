"""Unpack the uncompressed kernel (ELF, with a PVH note) from an x86 bzImage.

usage: extract_vmlinux.py BZIMAGE VMLINUX

QEMU starts an ELF kernel through its PVH entry, so that the guest need not decompress it: about a fifth off
the boot under TCG. The payload's place is in the set-up header (Linux Documentation/arch/x86/boot.rst:
setup_sects at 0x1f1, payload_offset at 0x248, payload_length at 0x24c).
"""

import struct
import subprocess
import sys
from pathlib import Path

DECOMPRESSORS = {
    b"\xfd7zXZ\0": ["xz", "-dc"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dc"],
    b"\x02\x21\x4c\x18": ["lz4", "-dc"],
    b"\x1f\x8b": ["gzip", "-dc"],
}


def main(source: str, target: str) -> None:
    image = Path(source).read_bytes()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    command = next(
        (c for magic, c in DECOMPRESSORS.items() if payload.startswith(magic)), None
    )
    if command is None:
        raise SystemExit(f"{source}: unknown kernel compression {payload[:6].hex()}")
    # The four bytes behind the stream hold the unpacked size; the tools call that trailing garbage.
    run = subprocess.run(command, input=payload[:-4], capture_output=True, check=False)
    kernel = run.stdout
    if not kernel.startswith(b"\x7fELF"):
        run = subprocess.run(command, input=payload, capture_output=True, check=False)
        kernel = run.stdout
    if not kernel.startswith(b"\x7fELF"):
        raise SystemExit(f"{source}: no ELF kernel inside: {run.stderr.decode()!r}")
    Path(target).write_bytes(kernel)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
