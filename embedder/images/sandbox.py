"""What a decoding process can't do any more: take more memory or time, open, write, connect, start anything.

Linux only. Limits always hold; the filter of system calls (seccomp) where the kernel has it, on x86-64 and AArch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 4, 38, 22
_SECCOMP_MODE_FILTER = 2

# struct sock_filter: code, jump if true, jump if false, operand (linux/bpf_common.h, linux/seccomp.h)
_LOAD, _EQUALS, _HAS_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x10000  # a flag of clone: a thread, not a process

# What decoding takes: memory, its own descriptors, clocks, signals, the end; by the kernel's number.
_CALLS = {
    "x86_64": (
        0xC000003E,  # AUDIT_ARCH_X86_64
        "read 0 write 1 close 3 fstat 5 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 rt_sigaction 13 "
        "rt_sigprocmask 14 rt_sigreturn 15 sched_yield 24 mremap 25 madvise 28 setitimer 38 getpid 39 sendto 44 "
        "recvfrom 45 exit 60 gettimeofday 96 getrusage 98 sigaltstack 131 gettid 186 futex 202 "
        "sched_getaffinity 204 restart_syscall 219 clock_gettime 228 exit_group 231 newfstatat 262 prlimit64 302 "
        "getrandom 318 rseq 334",
        "set_robust_list 273 clone 56",
    ),
    "aarch64": (
        0xC00000B7,  # AUDIT_ARCH_AARCH64
        "close 57 lseek 62 read 63 write 64 ppoll 73 newfstatat 79 fstat 80 exit 93 exit_group 94 futex 98 "
        "setitimer 103 clock_gettime 113 sched_getaffinity 123 sched_yield 124 restart_syscall 128 sigaltstack 132 "
        "rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 getrusage 165 gettimeofday 169 getpid 172 gettid 178 "
        "sendto 206 recvfrom 207 brk 214 munmap 215 mremap 216 mmap 222 mprotect 226 madvise 233 prlimit64 261 "
        "getrandom 278 rseq 293",
        "set_robust_list 99 clone 220",
    ),
}
_CLONE3 = 435  # on both


def mapped_bytes() -> int:
    """The address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def close_doors(*, threads: bool = False) -> None:
    """No file grows, no descriptor is added, no process starts, nothing is dumped. For good.

    A codec that can't do without `threads` may start them.
    """
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):  # open ones stay
        resource.setrlimit(limit, (0, 0))
    if not threads:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # root may all the same, but for the filter
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # others of the same user can't read its memory


def filter_calls(*, threads: bool = False) -> None:
    """Let every system call fail but those that decoding takes, where the kernel can be told."""
    known = _CALLS.get(platform.machine())
    if known is None:
        return
    architecture, calls, of_threads = known
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUALS, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER)]
    for number in map(int, calls.split()[1::2]):
        steps += [(_EQUALS, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    if threads:
        *allowed, clone = map(int, of_threads.split()[1::2])
        steps += [step for number in allowed for step in ((_EQUALS, 0, 1, number), (_RETURN, 0, 0, _ALLOW))]
        steps += [(_EQUALS, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        steps += [(_HAS_BITS, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW)]
    # libc takes clone only where there is no clone3, whose flags no filter can read.
    steps += [(_EQUALS, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    steps += [(_RETURN, 0, 0, _FAIL | errno.EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def limit_picture(*, address_space: int, cpu_s: int, wall_s: int) -> None:
    """For the next picture: bytes of address space in all, seconds of processor time from now, and of time.

    The process ends when it has used up the time.
    """
    cpu_until_s = int(time.process_time()) + 1 + cpu_s
    for limit, value in ((resource.RLIMIT_AS, address_space), (resource.RLIMIT_CPU, cpu_until_s)):
        hard = resource.getrlimit(limit)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(ValueError):
            resource.setrlimit(limit, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, wall_s)
