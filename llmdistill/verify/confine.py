"""Give up, for the rest of this process, what a test of foreign code does not need (Linux, no privileges needed).

Imported by `sandbox` as a file beside it; it imports nothing of this package. System call numbers and
structures are those of the kernel's UAPI headers (seccomp.h, landlock.h, filter.h).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

_NO_NEW_PRIVS, _SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a directory
_LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14}  # newest right of each version of Landlock
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # those that a rule on a file, not a directory, may name
_THREAD = 0x00010000  # CLONE_THREAD
_PERM, _NOSYS = 1, 38

_ARCHITECTURES: dict[str, tuple[int, int, int, str]] = {
    # audit architecture, clone, clone3, and what is refused: fork vfork execve execveat; socket socketpair
    # connect; kill tkill tgkill pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo; ptrace process_vm_readv
    # process_vm_writev; setrlimit prlimit64; setsid setpgid; unshare setns mount chroot pivot_root bpf
    # perf_event_open io_uring_setup keyctl open_by_handle_at; shmget msgget semget; chmod and chown in all
    # forms, which Landlock does not know
    "x86_64": (
        0xC000003E,
        56,
        435,
        "57 58 59 322 41 53 42 62 200 234 424 129 297 101 310 311 160 302 112 109 272 308 165 161 155 321 298 425 "
        "250 304 29 68 64 90 91 268 452 92 93 94 260",
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        "221 281 198 199 203 129 130 131 424 138 240 117 270 271 164 261 157 154 97 268 40 51 41 280 241 425 "
        "219 265 194 186 190 52 53 452 54 55",
    ),
}


def confine(work_dir: str, readable: Sequence[str]) -> bool:
    """Allow no new process, socket or signal, no writing outside `work_dir`, no reading outside it and `readable`.

    Gives False where the kernel cannot do all of this; what it can do is in force then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if platform.system() != "Linux" or libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    files = _confine_files(libc, work_dir, readable)
    return _confine_calls(libc) and files


def _confine_files(libc: ctypes.CDLL, work_dir: str, readable: Sequence[str]) -> bool:
    """Landlock: beneath `work_dir` everything, beneath `readable` reading, elsewhere nothing."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    everything = (1 << (_LAST_RIGHT.get(version, 15) + 1)) - 1
    attributes = struct.pack("Q", everything)
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    rules = [(work_dir, everything & ~1), *((path, _READ) for path in readable)]
    allowed = all(_allow(libc, ruleset, path, rights) for path, rights in rules if os.path.exists(path))
    restricted = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return allowed and restricted


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> bool:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rights = rights if os.path.isdir(path) else rights & _FILE_RIGHTS
    rule = struct.pack("=Qi", rights, place)
    done = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0) == 0
    os.close(place)
    return done


def _confine_calls(libc: ctypes.CDLL) -> bool:
    """A seccomp filter that answers the listed system calls with "not permitted"; threads stay possible."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    program = _program(known[0], known[1], known[2], [int(number) for number in known[3].split()])
    code = ctypes.create_string_buffer(b"".join(program))
    address = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    return libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, address, 0, 0) == 0


def _program(architecture: int, clone: int, clone3: int, refused: list[int]) -> list[bytes]:
    """Instructions of classic BPF over `struct seccomp_data`: number at 0, architecture at 4, arguments from 16."""
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    program = [
        _instruction(load, 4),
        _instruction(equal, architecture, 1, 0),
        _instruction(give, kill),
        _instruction(load, 0),
        _instruction(at_least, 0x40000000, 0, 1),  # the x32 numbers of the same calls
        _instruction(give, _refuse(_PERM)),
        _instruction(equal, clone3, 0, 1),
        _instruction(give, _refuse(_NOSYS)),  # its flags cannot be seen; the C library falls back to clone
        _instruction(equal, clone, 0, 4),
        _instruction(load, 16),
        _instruction(bits, _THREAD, 0, 1),
        _instruction(give, allow),
        _instruction(give, _refuse(_PERM)),
    ]
    for number in refused:
        program += [_instruction(equal, number, 0, 1), _instruction(give, _refuse(_PERM))]
    return [*program, _instruction(give, allow)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> int:
    return 0x00050000 | error
