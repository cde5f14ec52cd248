"""The guest's reader of its seed disk (images/guest/seed.c): it runs as the guest's root on what the host gives."""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.test_plan_rendering import GUEST, plan
from vmdriver.storage.sandboxes import seed

HARNESS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "seed.h"
int main(void) { /* each seed: its size, and its bytes; nothing is behind them */
    unsigned size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *bytes = malloc(size ? size : 1), line[320];
        struct seed seed;
        if (fread(bytes, 1, size, stdin) != size)
            return 1;
        int done = seed_read(bytes, size, &seed);
        printf("%s\n", done ? "read" : seed.why);
        for (size_t i = 0; done && i < seed.count; i++) {
            const struct seed_entry *at = &seed.entries[i];
            unsigned sum = 0;
            for (size_t n = 0; n < at->size; n++)
                sum = sum * 31 + (unsigned char)at->bytes[n];
            char **words = at->directory ? NULL : seed_environment(at);
            size_t count = 0;
            for (char **word = words; word && *word; word++)
                count += strlen(*word) + 1;
            if ((words && count != at->size) || seed_file(&seed, at->path) == NULL) {
                if (!at->directory)
                    abort();
            }
            if (seed_line(at, line, sizeof line) == 0 && strchr(line, '\n'))
                abort();
            printf("%o %d %zu %u %s\n", (unsigned)at->mode, at->directory, at->size, sum, at->path);
            free(words);
        }
        printf(".\n");
        fflush(stdout);
        free(seed.entries);
        free(bytes);
    }
    return 0;
}
"""


class Reader:
    """The process; it ends with an error where a byte is read that is not its own."""

    def __init__(self, program: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([program], **pipes)  # type: ignore[call-overload]

    def read(self, data: bytes) -> tuple[str, list[list[bytes]]]:
        """What it says, and each entry: mode, whether it is a directory, size, sum, path."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(struct.pack("I", len(data)) + data)
        self.process.stdin.flush()
        lines: list[bytes] = []
        while (line := self.process.stdout.readline()) != b".\n":
            assert line, f"it ended with {self.process.wait()}"
            lines.append(line.rstrip(b"\n"))
        return lines[0].decode(), [line.split(b" ", 4) for line in lines[1:]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    program = tmp_path_factory.mktemp("seed") / "reader"
    checks = "-fsanitize=address,undefined"
    command = ["gcc", "-g", checks, "-fno-sanitize-recover=all", f"-I{GUEST}"]
    command += ["-Wall", "-Wextra", "-Werror", "-o", str(program)]
    command += ["-x", "c", "-", str(GUEST / "seed.c")]
    subprocess.run(command, input=HARNESS.encode(), check=True)
    reader = Reader(program)
    yield reader
    assert reader.process.stdin
    assert reader.process.stdout
    reader.process.stdin.close()
    reader.process.stdout.close()
    assert reader.process.wait(10) == 0, "memory is lost, or worse"


def archive(*entries: tuple[str, bytes | bytes], **changes: object) -> bytes:
    buffer = io.BytesIO()
    form = changes.pop("format", tarfile.USTAR_FORMAT)
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:  # type: ignore[call-overload]
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            for field, value in changes.items():
                setattr(entry, field, value)
            made.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def summed(data: bytes, at: int = 0) -> bytes:
    """The header there with the sum that it should have."""
    header = bytearray(data[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


SECRETS = seed.Secrets({"auth/sandbox.jwt": b"token\n", "tls/tls.crt": b"x" * 5000})
WHOLE = seed.build(plan(), {"A": "1", "B": "two\nlines"}, SECRETS)


@pytest.mark.parametrize("data", [WHOLE, seed.build_barrier(plan())])
def test_a_seed_of_ours_is_read_as_it_was_written(reader: Reader, data: bytes) -> None:
    word, found = reader.read(data + bytes(65536))
    assert word == "read"
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        for entry, member in zip(found, made.getmembers(), strict=True):
            assert int(entry[0], 8) == member.mode
            assert bool(int(entry[1])) == member.isdir()
            assert int(entry[2]) == member.size
            assert entry[4].decode() == member.name
            total = 0
            for byte in made.extractfile(member).read() if member.isfile() else b"":  # type: ignore[union-attr]
                total = (total * 31 + byte) % 2**32
            assert int(entry[3]) == total


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/x", "over/../x", "over/./x", "over//x", "over/x/..", "over/.."),
        *("", "x", "overx/y", "initial/x", "over/" + "a/" * 15 + "b", "init/x/"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(reader: Reader, name: str) -> None:
    data = bytearray(archive(("over/" + "q" * 60, b"text")))
    data[:100] = name.encode().ljust(100, b"\0")
    assert reader.read(summed(bytes(data))) == ("an entry has no valid name", [])


def test_the_two_halves_of_a_long_name_are_one_and_checked_as_one(
    reader: Reader,
) -> None:
    long = "over/" + "d" * 90 + "/" + "f" * 90
    assert reader.read(archive((long, b"x")))[1][0][4] == long.encode()
    hidden = bytearray(archive(("over/" + "d" * 90 + "/" + "f" * 90, b"x")))
    hidden[345 : 345 + 155] = b"over/.." + bytes(148)
    assert reader.read(summed(bytes(hidden)))[0] == "an entry has no valid name"


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", b"7", b"\0", b"x", b"L", b"g", b"S"])  # fmt: skip
def test_what_is_neither_file_nor_directory_is_refused(
    reader: Reader, kind: bytes
) -> None:
    data = bytearray(archive(("over/x", b"")))
    data[156:157] = kind
    assert reader.read(summed(bytes(data)))[0] == (
        "an entry is neither a file nor a directory"
    )


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (b"77777777777\0", "it ends within a file"),
        (b"777777777777", "it ends within a file"),
        (b"\x80" + b"\xff" * 11, "a number is none"),
        (b"-0000000001\0", "a number is none"),
        (b"           \0", "a number is none"),
        (b"00000000008\0", "a number is none"),
        (b"0\0" + b"1" * 10, "a number is none"),
    ],
)
def test_a_size_that_is_none_or_more_than_there_is_is_refused(
    reader: Reader, size: bytes, why: str
) -> None:
    data = bytearray(archive(("over/x", b"text")))
    data[124:136] = size
    assert reader.read(summed(bytes(data))) == (why, [])


def test_more_entries_than_a_seed_has_are_refused(reader: Reader) -> None:
    many = archive(*[(f"over/{number}", b"") for number in range(4097)])
    assert reader.read(many) == ("it has too many entries", [])
    assert reader.read(many[512:])[0] == "read"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_other_formats_are_not_guessed_at(reader: Reader, form: int) -> None:
    assert reader.read(archive(("over/" + "é" * 120, b""), format=form))[0] != "read"


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 513, 1024, 2000])
def test_a_seed_without_an_end_is_refused(reader: Reader, cut: int) -> None:
    assert reader.read(WHOLE.rstrip(b"\0")[:cut])[0] != "read"


HEADERS = [i for i in range(0, len(WHOLE), 512) if WHOLE[i + 257 : i + 262] == b"ustar"]


@settings(max_examples=400, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(HEADERS),
            st.integers(0, 511),
            st.binary(min_size=1, max_size=12),
        ),
        max_size=4,
    ),
    end=st.integers(0, len(WHOLE)),
    right=st.booleans(),
)
@example(changes=[], end=len(WHOLE), right=True)
def test_whatever_is_changed_in_a_seed_what_is_read_is_safe(
    reader: Reader, changes: list[tuple[int, int, bytes]], end: int, right: bool
) -> None:
    data = bytearray(WHOLE)
    for header, at, new in changes:
        data[header + at : header + at + len(new)] = new
    if right:
        for header, _, _ in changes:
            data = bytearray(summed(bytes(data), header))
    cut = bytes(data[:end])
    word, found = reader.read(cut)
    assert word == "read" or found == []
    for mode, directory, size, _, path in found:
        assert int(mode, 8) <= 0o777
        assert int(size) <= len(cut)
        assert not (int(directory) and int(size))
        names = path.split(b"/")
        assert names[0] in {b"init", b"over"}
        assert not {b"", b".", b".."} & set(names)
