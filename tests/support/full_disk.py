"""A disk that is full from one write on, for a process and all that it starts.

The kernel asks before each system call that takes space on a disk, and is given the answer of a full disk. That
needs no privilege, and hits every library in every language:
https://docs.kernel.org/userspace-api/seccomp_filter.html#userspace-notification
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bot.jobs import seccomp

# What takes space, by the kind of it: inodes, blocks, and blocks that are looked for when they are written back.
# Numbers as in bot.jobs.seccomp; -1 where there is no such call.
_CALLS: dict[str, tuple[str, int, int]] = {
    "open": ("create", 2, -1),
    "openat": ("create", 257, 56),
    "creat": ("create", 85, -1),
    "mkdir": ("create", 83, -1),
    "mkdirat": ("create", 258, 34),
    "write": ("write", 1, 64),
    "pwrite64": ("write", 18, 68),
    "writev": ("write", 20, 66),
    "pwritev": ("write", 296, 70),
    "sendfile": ("write", 40, 71),
    "copy_file_range": ("write", 326, 285),
    "fallocate": ("write", 285, 47),
    "fsync": ("sync", 74, 82),
    "fdatasync": ("sync", 75, 83),
}
_FLAGS = {"open": 24, "openat": 32}  # where struct seccomp_data has the argument with O_CREAT
_WRITTEN_TO = {"copy_file_range": 2}  # which argument is the file that is written; the first in all others
_HERE = -100  # AT_FDCWD of linux/fcntl.h

# Of linux/seccomp.h and linux/prctl.h.
_NO_NEW_PRIVS, _SET_FILTER, _NEW_LISTENER, _ASK, _GO_ON = 38, 1, 8, 0x7FC00000, 1
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_REQUEST, _REPLY = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_SECCOMP = {"x86_64": 317, "aarch64": 277}


class Write(NamedTuple):
    """kind: create, write or sync. path: below the disk's folder."""

    kind: str
    path: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


@dataclass
class Disk:
    """folder: what is on it. full_from: the number of the first write that fails; None: there is space for all.

    From there on all writes of its kind fail. writes: all of them; failed: those that did.
    """

    folder: Path
    full_from: int | None = None
    code: int = errno.ENOSPC
    writes: list[Write] = field(default_factory=list)
    failed: list[Write] = field(default_factory=list)

    @contextmanager
    def answering(self, listener: int) -> Iterator[None]:
        """While the processes run that ask. listener: as from `ask`; it is closed at the end."""
        thread = threading.Thread(target=self._answer, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            thread.join()
            os.close(listener)

    def _answer(self, listener: int) -> None:
        """Until no process is left that could ask."""
        names = {numbers[_column()]: name for name, (_, *numbers) in _CALLS.items()}
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        while waiting.poll()[0][1] & select.POLLIN:
            content = bytearray(_REQUEST.size)
            try:
                fcntl.ioctl(listener, _RECEIVE, content)
                identity, pid, _, number, _, _, *arguments = _REQUEST.unpack(content)
                code = self.code if self._is_full(pid, names[number], arguments) else 0
                reply = _REPLY.pack(identity, 0, -code, 0 if code else _GO_ON)
                fcntl.ioctl(listener, _ANSWER, bytearray(reply))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINTR):  # who asked was killed
                    raise

    def _is_full(self, pid: int, name: str, arguments: Sequence[int]) -> bool:
        path, kind = _path(pid, name, arguments), _CALLS[name][0]
        if path is None or not path.is_relative_to(self.folder) or (kind == "create" and path.exists()):
            return False
        self.writes.append(Write(kind, path.relative_to(self.folder).as_posix()))
        if self.full_from is None or len(self.writes) <= self.full_from:
            return False
        if kind != self.writes[self.full_from].kind:
            return False
        self.failed.append(self.writes[-1])
        return True


def _column() -> int:
    return {"x86_64": 0, "aarch64": 1}[os.uname().machine]


def _path(pid: int, name: str, arguments: Sequence[int]) -> Path | None:
    """Of a file on a disk, or None."""
    process = Path("/proc", str(pid))
    try:
        if _CALLS[name][0] != "create":
            found = (process / "fd" / str(arguments[_WRITTEN_TO.get(name, 0)])).readlink()
            return found if found.is_absolute() else None
        at = name.endswith("at")
        path = Path(os.fsdecode(_text(process, arguments[at])))
        start = ctypes.c_int32(arguments[0] & 0xFFFFFFFF).value if at else _HERE
        return (
            path
            if path.is_absolute()
            else (process / ("cwd" if start == _HERE else f"fd/{start}")).readlink() / path
        )
    except OSError:  # it has ended, or is not ours to look into
        return None


def _text(process: Path, address: int) -> bytes:
    with (process / "mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(4096).partition(b"\0")[0]


# --- in the process that asks -------------------------------------------------------------------------------


def ask(answering: socket.socket) -> None:
    """From here on this process and all that it starts ask at the other end of the socket. Raises OSError."""
    machine, libc = os.uname().machine, ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    steps = [seccomp._Step(*step) for step in _filter()]
    program = seccomp._Program(len(steps), (seccomp._Step * len(steps))(*steps))
    listener = libc.syscall(_SECCOMP[machine], _SET_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no seccomp notifications here")
    socket.send_fds(answering, [b"1"], [listener])
    os.close(listener)


def listener_of(asking: socket.socket) -> int:
    """The listener that `ask` sends. Raises EOFError where it cannot."""
    _, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
    if not descriptors:
        raise EOFError
    return descriptors[0]


def _filter() -> Iterator[seccomp._Instruction]:
    """Those calls, those that create files only with O_CREAT."""
    asked = (seccomp._RETURN, 0, 0, _ASK)
    yield seccomp._LOAD, 0, 0, seccomp._NUMBER
    for name, (_, *numbers) in _CALLS.items():
        steps = [asked]
        if name in _FLAGS:
            creates = (seccomp._HAS, 0, 1, os.O_CREAT)
            steps = [(seccomp._LOAD, 0, 0, _FLAGS[name]), creates, asked, seccomp._allow()]
        if (number := numbers[_column()]) >= 0:
            yield from seccomp._if(number, steps)
    yield seccomp._allow()
