"""A seccomp filter: system calls that quantizing and measuring a model never need. Works without any privilege.

https://docs.kernel.org/userspace-api/seccomp_filter.html. The standard library alone: see bot.jobs.confined.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

# By AUDIT_ARCH of linux/audit.h. The numbers are those of the tables in the kernel's source:
# https://github.com/torvalds/linux/blob/master/arch/x86/entry/syscalls/syscall_64.tbl
# https://github.com/torvalds/linux/blob/master/scripts/syscall.tbl
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_X32 = 0x40000000

_DENIED = {
    # Connections. Which sockets can be made at all: _socket.
    "connect": (42, 203),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # It would do what the filter denies without a system call for each.
    "io_uring_setup": (425, 425),
    # Files without their names, other mounts, other namespaces.
    "open_by_handle_at": (304, 265),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    # Keys, and the kernel itself.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "acct": (163, 89),
}
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3, _IOCTL = (41, 198), (53, 199), (56, 220), (435, 435), (16, 29)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET of linux/sched.h.
_NEW_NAMESPACES = 0x7E020000
# Writes to the terminal as if a person had typed it: TIOCSTI and TIOCLINUX.
_TYPING = (0x5412, 0x541C)

_UNIX, _STREAM, _SEQPACKET = 1, 1, 5

# Of linux/filter.h: load a word, jump if equal, greater or equal, has bits, and; return.
_LOAD, _EQUAL, _AT_LEAST, _HAS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # struct seccomp_data; the lower halves of arguments
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_SET_SECCOMP, _FILTER = 22, 2

_Instruction = tuple[int, int, int, int]


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def restrict() -> None:
    """From here on this process, and all that it starts, have no network.

    And cannot look into other processes, mount, make namespaces, type into the terminal or change the kernel.
    Raises OSError where that is not possible.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}")
    program = tuple(_filter(_ARCHITECTURES[machine], _COLUMN[machine]))
    steps = (_Step * len(program))(*(_Step(*step) for step in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(_Program(len(program), steps)), 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")


def _filter(architecture: int, column: int) -> Iterator[_Instruction]:
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, architecture
    yield _fail(errno.EPERM)
    yield _LOAD, 0, 0, _NUMBER
    yield _AT_LEAST, 0, 1, _X32
    yield _fail(errno.EPERM)
    for numbers in _DENIED.values():
        yield from _if(numbers[column], [_fail(errno.EPERM)])
    # glibc then uses clone, whose flags can be seen here.
    yield from _if(_CLONE3[column], [_fail(errno.ENOSYS)])
    yield from _if(
        _CLONE[column],
        [(_LOAD, 0, 0, _FIRST), (_HAS, 0, 1, _NEW_NAMESPACES), _fail(errno.EPERM), _allow()],
    )
    for numbers in (_SOCKET, _SOCKETPAIR):
        yield from _if(numbers[column], _socket())
    typing = [(_EQUAL, 0, 1, request) for request in _TYPING]
    yield from _if(
        _IOCTL[column],
        [(_LOAD, 0, 0, _SECOND), typing[0], _fail(errno.EPERM), typing[1], _fail(errno.EPERM), _allow()],
    )
    yield _allow()


def _socket() -> list[_Instruction]:
    """Unix sockets that send only where they are connected; CUDA's driver opens one."""
    return [
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 1, 0, _UNIX),
        _fail(errno.EACCES),
        (_LOAD, 0, 0, _SECOND),
        (_AND, 0, 0, 0xF),
        (_EQUAL, 2, 0, _STREAM),
        (_EQUAL, 1, 0, _SEQPACKET),
        _fail(errno.EACCES),
        _allow(),
    ]


def _if(number: int, steps: list[_Instruction]) -> list[_Instruction]:
    """The steps for one system call; each way through them ends with an answer."""
    return [(_EQUAL, 0, len(steps), number), *steps]


def _fail(code: int) -> _Instruction:
    return _RETURN, 0, 0, _ERROR | code


def _allow() -> _Instruction:
    return _RETURN, 0, 0, _ALLOW
