"""Landlock: which files a process may read and write. Works without any privilege, and for root as well.

https://docs.kernel.org/userspace-api/landlock.html. The standard library alone: see bot.jobs.confined.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

# Of linux/landlock.h; the numbers of the system calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR, _MAKE_REG = (1 << bit for bit in range(4, 9))
_REFER, _TRUNCATE, _IOCTL_DEV = (1 << bit for bit in range(13, 16))
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
RUN = READ | _EXECUTE
USE = READ | _WRITE_FILE | _IOCTL_DEV
APPEND = _WRITE_FILE
# No links, sockets, pipes or devices.
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE

# The version that brought them: https://docs.kernel.org/userspace-api/landlock.html#previous-limitations
_REFER_SINCE, _TRUNCATE_SINCE, TCP_SINCE, _IOCTL_SINCE, SCOPES_SINCE = 2, 3, 4, 5, 6
_ALL_TCP = 3
_ALL_SCOPES = 3  # abstract Unix sockets, and signals, of processes outside

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Of this kernel's Landlock; 0 where there is none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def restrict(allowed: Iterable[tuple[str, int]]) -> None:
    """From here on this process, and all that it starts, reach only these paths and what is below them.

    allowed: paths with LIST, READ, RUN, USE, APPEND or WRITE. What does not exist is left out. On newer kernels it
    also can use no TCP, and cannot send signals to processes outside. Raises OSError where there is no Landlock.
    """
    found = version()
    if not found:
        raise OSError("no Landlock")
    handled = _known(found)
    network, scopes = (_ALL_TCP if found >= TCP_SINCE else 0), (_ALL_SCOPES if found >= SCOPES_SINCE else 0)
    ruleset = _Ruleset(handled, network, scopes)
    # An older kernel knows a shorter structure.
    length = 8 if not network else 16 if not scopes else 24
    descriptor = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(length), 0)
    try:
        for path, rights in allowed:
            _allow(descriptor, path, rights & handled)
        _call(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)


def _known(found: int) -> int:
    newest = (1 << 16) - 1
    for since, right in ((_REFER_SINCE, _REFER), (_TRUNCATE_SINCE, _TRUNCATE), (_IOCTL_SINCE, _IOCTL_DEV)):
        newest &= ~right if found < since else newest
    return newest


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        kept = rights if os.path.isdir(path) else rights & _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_Beneath(kept, descriptor)), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
