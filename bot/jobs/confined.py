"""The first code of a child process: it gives up what it does not need, then becomes the command.

Started by bot.jobs.isolation as `python -I -S`, so it and what it imports use the standard library alone. Every
mechanism is tried; what the machine does not have is left out, unless it was asked for in `need`.

    bot ── supervisor ─┬─ (outside) ── init ── command    with namespaces: the kernel ends what is left
                       └─ command                         without: the supervisor ends what is left
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

from bot.jobs import landlock, seccomp

PARENT = "AWQ_BOT_PARENT"
NOT_ISOLATED = 78  # exit code, where something of `need` is not possible here
_NO_NAMESPACES = 79

# Of linux/prctl.h, linux/sched.h, sys/mount.h and linux/capability.h.
_PARENT_DEATH_SIGNAL, _DUMPABLE, _DROP_BOUNDING, _SUBREAPER, _NO_NEW_PRIVS, _AMBIENT = 1, 4, 24, 36, 38, 47
_AMBIENT_CLEAR = 4
_USER, _MOUNTS, _PIDS, _NETWORK, _IPC = 0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _HERE, _READ_ONLY = 442, -100, 1
_CAPABILITIES_VERSION, _DAC_OVERRIDE = 0x20080522, 1

_RELAYED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_PATIENCE_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)

# What protects what; the mechanisms that are in force.
Report = dict[str, list[str]]


def main() -> NoReturn:
    """sys.argv[1]: JSON, as isolation.Confinement makes it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    asked: dict[str, Any] = json.loads(sys.argv[1])
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.environ.get(PARENT) != str(os.getppid()):
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_SUBREAPER, 1)
    status = _in_namespaces(asked)
    if status is None:
        pid = _fork()
        if pid == 0:
            _become(asked, {"left over": ["ended by the bot"]})
        _prctl(_DUMPABLE, 0)
        status = _wait(pid)
        _end_descendants()
    _end_as(status)


# --- processes ----------------------------------------------------------------------------------------------


def _fork() -> int:
    """As os.fork; the child is killed when this process ends, however it ends."""
    alive, held = os.pipe()
    pid = os.fork()
    if pid:
        os.close(alive)
        return pid
    os.close(held)
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:  # closed: it ended before
        os._exit(1)
    os.close(alive)
    return 0


def _wait(child: int) -> int:
    """The status that the child ends with. A signal that our own parent sends is passed on.

    A terminal sends Ctrl-C to all processes itself.
    """
    while True:
        received = signal.sigwaitinfo(_RELAYED)
        if received.si_signo == signal.SIGCHLD:
            while (ended := _reap()) is not None:
                if ended[0] == child:
                    return ended[1]
        elif received.si_pid == os.getppid():  # in an init: 0, which is every process outside
            os.kill(child, received.si_signo)


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _end_descendants() -> None:
    """Whatever the command left behind belongs to this process now, which is its subreaper."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for pid in _children():
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[1]) == os.getpid():
                found.append(int(name))
    return found


def _end_as(status: int) -> NoReturn:
    """End as the command ended, also if that was by a signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


# --- namespaces ---------------------------------------------------------------------------------------------


def _in_namespaces(asked: dict[str, Any]) -> int | None:
    """Run the command in namespaces of its own. Returns its status, or None where they cannot be made."""
    (ready, say_ready), (go, say_go), (ended, say_ended) = os.pipe(), os.pipe(), os.pipe()
    pid = _fork()
    if pid == 0:
        os.close(say_go)
        _outside(asked, say_ready=say_ready, go=go, say_ended=say_ended)
    for descriptor in (say_ready, go, say_ended):
        os.close(descriptor)
    if os.read(ready, 1) and _map_ids(pid):
        os.write(say_go, b"1")
    os.close(say_go)
    _prctl(_DUMPABLE, 0)
    status, reported = _wait(pid), os.read(ended, 16)
    for descriptor in (ready, ended):
        os.close(descriptor)
    if not reported and os.WIFEXITED(status) and os.WEXITSTATUS(status) == _NO_NAMESPACES:
        return None
    return int(reported) if reported else status


def _outside(asked: dict[str, Any], *, say_ready: int, go: int, say_ended: int) -> NoReturn:
    """The process that makes the namespaces. It stays outside the PID namespace; its child is the first in it."""
    if _libc.unshare(_USER | _MOUNTS | _PIDS | _NETWORK | _IPC) != 0:
        os._exit(_NO_NAMESPACES)
    os.write(say_ready, b"1")
    if not os.read(go, 1):
        os._exit(_NO_NAMESPACES)
    try:
        pid = _fork()
    except OSError:
        os._exit(_NO_NAMESPACES)
    if pid == 0:
        report = _mount(asked)
        pid = _fork()
        if pid == 0:
            _become(asked, report)
        _prctl(_DUMPABLE, 0)
        os.write(say_ended, b"%d" % _wait(pid))
        os._exit(0)
    _prctl(_DUMPABLE, 0)
    _end_as(_wait(pid))


def _map_ids(pid: int) -> bool:
    """Every account keeps its number. Without privileges only our own can be mapped."""
    try:
        if os.geteuid() == 0:
            for kind in ("uid", "gid"):
                with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
                    ranges = [line.split() for line in file]
                _write(
                    f"/proc/{pid}/{kind}_map", "".join(f"{first} {first} {count}\n" for first, _, count in ranges)
                )
        else:
            _write(f"/proc/{pid}/uid_map", f"{os.geteuid()} {os.geteuid()} 1\n")
            _write(f"/proc/{pid}/setgroups", "deny")
            _write(f"/proc/{pid}/gid_map", f"{os.getegid()} {os.getegid()} 1\n")
    except OSError:
        return False
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _mount(asked: dict[str, Any]) -> Report:
    """Seal folders and files, and show no processes and no shared memory of others."""
    private = _libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0
    # Refused where parts of /proc are hidden, as in most containers. Then its numbers would be those of outside.
    if not private or _libc.mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC, None) != 0:
        os._exit(_NO_NAMESPACES)
    report = {name: ["PID namespace"] for name in ("processes", "left over")} | {"network": ["network namespace"]}
    if all(_seal(path) for path in asked["sealed"]):
        report["source"] = ["read-only mount"]
    used = [*asked["write"], *asked["append"], *asked["sealed"]]
    if not any(path.startswith("/dev/shm/") for path in used):
        flags = _NOSUID | _NODEV | _NOEXEC
        if _libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", flags, b"mode=1777") == 0:
            asked["write"].append("/dev/shm")
    return report


def _seal(path: str) -> bool:
    """mount_setattr leaves the other attributes of the mount as they are, which may not be changed here."""
    if not os.path.exists(path):
        return True
    name = os.fsencode(path)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY)
    return bool(
        _libc.mount(name, name, None, _BIND, None) == 0
        and _libc.syscall(_MOUNT_SETATTR, _HERE, name, 0, attributes, ctypes.c_size_t(32)) == 0
    )


# --- the command itself -------------------------------------------------------------------------------------


def _become(asked: dict[str, Any], report: Report) -> NoReturn:
    """Give up what is not needed, then run the command in this process; or only print what is in force."""
    _limit(asked, report)
    _give_up_rights(asked, report)
    missing = [name for name in asked["need"] if not report.get(name)]
    if missing:
        sys.stderr.write(f"not isolated: {', '.join(missing)}\n")
        os._exit(NOT_ISOLATED)
    if not asked["command"]:
        sys.stdout.write(json.dumps(report))
        sys.stdout.flush()
        os._exit(0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
    try:
        os.execve(asked["command"][0], asked["command"], os.environ | {PARENT: str(os.getppid())})
    except OSError as error:
        sys.stderr.write(f"{asked['command'][0]}: {error.strerror}\n")
        os._exit(127 if error.errno == errno.ENOENT else 126)


_LIMITS = {
    "memory_bytes": (resource.RLIMIT_DATA, "memory"),
    "cpu_s": (resource.RLIMIT_CPU, "CPU time"),
    "file_bytes": (resource.RLIMIT_FSIZE, "size of files"),
    "processes": (resource.RLIMIT_NPROC, "processes"),
}


def _limit(asked: dict[str, Any], report: Report) -> None:
    for name, (kind, said) in _LIMITS.items():
        if name in asked:
            hard = resource.getrlimit(kind)[1]
            limit = asked[name] if hard == resource.RLIM_INFINITY else min(hard, asked[name])
            resource.setrlimit(kind, (limit, limit))
            report.setdefault("limits", []).append(said)


def _give_up_rights(asked: dict[str, Any], report: Report) -> None:
    """In this order: Landlock wants no_new_privs, and seccomp forbids what the others use."""

    def add(name: str, mechanism: str) -> None:
        report.setdefault(name, []).append(mechanism)

    if _prctl(_NO_NEW_PRIVS, 1) == 0 and _drop_capabilities():
        add("privileges", "no_new_privs")
        add("privileges", "no capabilities")
    kinds = ("list", "read", "run", "use", "append", "write")
    rights = {kind: getattr(landlock, kind.upper()) for kind in kinds}
    try:
        landlock.restrict((path, rights[kind]) for kind in kinds for path in asked[kind])
    except OSError:
        pass
    else:
        name = f"Landlock {landlock.version()}"
        add("files", name)
        add("processes", name)
    try:
        seccomp.restrict()
    except OSError:
        return
    add("network", "seccomp")
    if report.get("processes"):  # by itself it does not keep the files in /proc from being read
        add("processes", "seccomp")


def _drop_capabilities() -> bool:
    """Root keeps the one by which it uses files of other accounts: those that Landlock leaves."""
    _prctl(_AMBIENT, _AMBIENT_CLEAR)
    kept = _DAC_OVERRIDE if os.geteuid() == 0 else -1
    for capability in range(64):
        if capability != kept:
            _prctl(_DROP_BOUNDING, capability)  # refused where there is none to drop
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    held = _held() & (1 << kept) if kept >= 0 else 0
    return bool(_libc.capset(header, (ctypes.c_uint32 * 6)(held, held, 0, 0, 0, 0)) == 0)


def _held() -> int:
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    return int(data[1]) if _libc.capget(header, data) == 0 else 0


def _prctl(option: int, value: int) -> int:
    """0, or -1 where the kernel refuses."""
    return int(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))
