"""How a process of ours gives up everything but the descriptors that it has, before it looks at
what a machine wrote: user, groups and capabilities, limits, and every call of the kernel that
opens, sends, starts or signals anything (seccomp(2), an allow-list).

For a fresh process with one thread. It imports next to nothing: whoever is confined begins at once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

_NO_NEW_PRIVILEGES, _DUMPABLE, _DEATH_SIGNAL, _SECCOMP = 38, 4, 1, 22
"""prctl(2): PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, PR_SET_SECCOMP."""
_FILTER_MODE, _SIGKILL = 2, 9
_LOAD, _EQUALS, _HAS_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
"""linux/bpf_common.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K."""
_ALLOW, _KILL, _DENY = 0x7FFF0000, 0x80000000, 0x00050001
"""SECCOMP_RET_ALLOW, _KILL_PROCESS, and _ERRNO with EPERM: a later interpreter may try a call that
it can do without.
"""
_NUMBER_AT, _ARCHITECTURE_AT, _THIRD_ARGUMENT_AT = 0, 4, 32
_EXECUTABLE = 4
_CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    # AUDIT_ARCH_X86_64; mmap; read write close lseek munmap brk rt_sigaction rt_sigprocmask
    # rt_sigreturn pread64 pwrite64 readv writev mremap madvise exit ftruncate futex
    # restart_syscall clock_gettime exit_group pwritev pwritev2
    "x86_64": (
        0xC000003E,
        9,
        (
            *(0, 1, 3, 8, 11, 12, 13, 14, 15, 17, 18, 19, 20, 25, 28, 60, 77, 202),
            *(219, 228, 231, 296, 328),
        ),
    ),
    # AUDIT_ARCH_AARCH64; the same.
    "aarch64": (
        0xC00000B7,
        222,
        (
            *(
                63,
                64,
                57,
                62,
                215,
                214,
                134,
                135,
                139,
                67,
                68,
                65,
                66,
                216,
                233,
                93,
                46,
            ),
            *(98, 128, 113, 94, 70, 287),
        ),
    ),
}


def _instruction(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)


def _filter(machine: str) -> bytes:
    """The program that the kernel runs at each call (struct sock_filter, seccomp_data). OSError."""
    if machine not in _CALLS:
        raise OSError(f"no list of system calls for {machine}")
    architecture, mmap, allowed = _CALLS[machine]
    kill, allow = _instruction(_RETURN, _KILL), _instruction(_RETURN, _ALLOW)
    deny = _instruction(_RETURN, _DENY)
    program = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_EQUALS, architecture, 1, 0),
        kill,
        _instruction(_LOAD, _NUMBER_AT),
    ]
    for number in allowed:
        program += [_instruction(_EQUALS, number, 0, 1), allow]
    program += [
        _instruction(_EQUALS, mmap, 0, 3),
        _instruction(_LOAD, _THIRD_ARGUMENT_AT),
        _instruction(_HAS_BITS, _EXECUTABLE, 1, 0),
        allow,
        deny,
    ]
    return b"".join(program)


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, most))


def _become(uid: int, gid: int) -> None:
    if os.geteuid() != 0:
        return  # there is nothing to give up
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # from root, this takes all capabilities as well
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or not uid:
        raise OSError(f"user {uid} and group {gid} are none that one can become")


def confine(
    uid: int, gid: int, *, file_bytes: int, memory_bytes: int, cpu_s: int
) -> None:
    """From now on this process is that user's, has no right, may only read and write what it has
    open, files up to `file_bytes`, take `memory_bytes` of address space and `cpu_s`, and ends with
    whoever began it. OSError, ValueError: it is not confined, and must end.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, argument: int, more: int = 0) -> None:
        words = [ctypes.c_ulong(word) for word in (argument, more, 0, 0)]
        if libc.prctl(option, *words):
            raise OSError(ctypes.get_errno(), f"prctl {option} was refused")

    code = _filter(os.uname().machine)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _limit(kind, most)
    _become(uid, gid)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_AS, memory_bytes)
    prctl(_DEATH_SIGNAL, _SIGKILL)  # a change of user would take it back
    prctl(_DUMPABLE, 0)
    prctl(_NO_NEW_PRIVILEGES, 1)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: number of instructions, where they are.
    where = ctypes.addressof(buffer)
    program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, where))
    prctl(_SECCOMP, _FILTER_MODE, ctypes.addressof(program))
