"""A filter of system calls for the program that reads and writes a folder for a guest, beside the
one that virtiofsd puts on itself. Pure (seccomp(2), linux/filter.h, linux/audit.h).

Whatever a guest's users are called, what they write is one user's of the host: calls that change
whose a new file is are answered as if they had done so, and do nothing. No file gets the bits by
which who runs it on the host would be that user. What a filter cannot look into (openat2, whose
arguments are in memory; io_uring) is not there.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

_LOAD, _EQUALS, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_JMP|JSET|K, BPF_RET|K."""
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
"""SECCOMP_RET_ALLOW, _KILL_PROCESS, _ERRNO; an error of 0 is success."""
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_OTHER_ABI = 0x40000000
"""Numbers from here on are those of x32."""
_SET_ID = 0o6000
_MAKES = 0o100 | 0o20000000
"""O_CREAT, __O_TMPFILE: only with one of these there is a mode."""


@dataclass(frozen=True)
class _Calls:
    """Numbers of one machine's calls; arguments count from 0."""

    architecture: int
    prctl: int
    pretended: tuple[int, ...]
    """setgroups setresuid setresgid"""
    absent: tuple[int, ...]
    """openat2 io_uring_setup"""
    denied: tuple[int, ...]
    """socket open_by_handle_at"""
    modes: tuple[tuple[int, int], ...]
    """Those that are given a mode, and which argument that is."""
    opens: tuple[tuple[int, int], ...]
    """Those that have flags, and which argument these are; the mode follows."""


_OF: dict[str, _Calls] = {
    "x86_64": _Calls(
        0xC000003E,
        157,
        pretended=(116, 117, 119),
        absent=(437, 425),
        denied=(41, 304),
        # chmod fchmod fchmodat fchmodat2 mknod mknodat creat
        modes=((90, 1), (91, 1), (268, 2), (452, 2), (133, 1), (259, 2), (85, 1)),
        opens=((2, 1), (257, 2)),
    ),
    "aarch64": _Calls(
        0xC00000B7,
        167,
        pretended=(159, 147, 149),
        absent=(437, 425),
        denied=(198, 265),
        # fchmod fchmodat fchmodat2 mknodat
        modes=((52, 1), (53, 2), (452, 2), (33, 2)),
        opens=((56, 2),),
    ),
}
INSTALL = (
    'my $code = pack "H*", shift; my $filter = pack "S x![P] P", length($code) / 8, $code; '
    "my $prctl = shift; "
    "syscall($prctl + 0, 38, 1, 0, 0, 0) == 0 && "
    "syscall($prctl + 0, 22, 2, $filter, 0, 0) == 0 "
    'or die "no filter of system calls: $!"; exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!"'
)
"""For perl: puts a filter (its bytes in hexadecimal, the number of prctl) on itself and becomes
what follows. prctl(2): PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP. No module, so that it begins quickly.
"""


def installed(machine: str) -> tuple[str, ...]:
    """The words that become what follows them, behind the filter. LookupError: the calls of that
    kind of machine are not known.
    """
    return ("perl", "-e", INSTALL, program(machine).hex(), str(_OF[machine].prctl))


def program(machine: str) -> bytes:
    """The filter (struct sock_filter). LookupError."""
    calls = _OF[machine]
    deny, allow = _returned(_ERROR | errno.EPERM), _returned(_ALLOW)
    absent = _returned(_ERROR | errno.ENOSYS)
    found = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_EQUALS, calls.architecture, 1, 0),
        _returned(_KILL),
        _instruction(_LOAD, _NUMBER_AT),
        _instruction(_AT_LEAST, _OTHER_ABI, 0, 1),
        absent,
    ]
    for numbers, answer in (
        (calls.pretended, _returned(_ERROR)),
        (calls.absent, absent),
        (calls.denied, deny),
    ):
        for number in numbers:
            found += [_instruction(_EQUALS, number, 0, 1), answer]
    for number, mode in calls.modes:
        found += [
            _instruction(_EQUALS, number, 0, 4),
            _argument(mode),
            _instruction(_HAS_BITS, _SET_ID, 0, 1),
            deny,
            allow,
        ]
    for number, flags in calls.opens:
        found += [
            _instruction(_EQUALS, number, 0, 6),
            _argument(flags),
            _instruction(_HAS_BITS, _MAKES, 0, 3),
            _argument(flags + 1),
            _instruction(_HAS_BITS, _SET_ID, 0, 1),
            deny,
            allow,
        ]
    return b"".join([*found, allow])


def _instruction(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)


def _returned(value: int) -> bytes:
    return _instruction(_RETURN, value)


def _argument(number: int) -> bytes:
    """Loads the lower half of an argument: both kinds of machines keep that first."""
    return _instruction(_LOAD, _FIRST_ARGUMENT_AT + 8 * number)
