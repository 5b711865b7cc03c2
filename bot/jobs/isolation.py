"""What child processes can reach, which read files that anybody uploaded, and what this machine can enforce.

Landlock, seccomp and limits need no privilege and are the base. Namespaces are added where they can be made: they
also end every process that is left, and keep source/ as it was pulled. bot.jobs.confined does it, in the child.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bot
from bot.errors import EnvironmentProblem
from bot.jobs.environment import child_environment
from bot.jobs.machine import core_count
from bot.records import Check

ESSENTIAL = ("files", "network", "processes", "privileges")
# Of `confined`: what is protected, and what a child can do where it is not.
_PROTECTS = {
    "files": "read and write every file that this account can",
    "network": "open connections",
    "processes": "read the memory and the environment of other processes",
    "privileges": "gain rights, as by sudo",
    "left over": "leave processes running",
    "source": "change source/ and calibration/, which it is compared with and made from",
    "limits": "fill memory and disk",
}
_HOW_TO = (
    "Use Linux 5.13 or newer with Landlock, which `cat /sys/kernel/security/lsm` names, and seccomp. A "
    "container's seccomp profile may forbid them; Docker's default one does not."
)

# Where programs and libraries are. What is not there is left out.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin"),
    *("/opt/nvidia", "/opt/rocm", "/nix/store", "/gnu/store", "/run/opengl-driver"),
)
_FOLDERS_OF_ETC = (
    *("alternatives", "fonts", "ld.so.conf.d", "ssl/certs", "pki/tls/certs"),
    *("OpenCL", "vulkan", "nvidia"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "kfd", "dri", "dxg", "nvidia-caps")
_START = "import sys; sys.path.append(sys.argv.pop(1)); from bot.jobs.confined import main; main()"
# Threads, of all processes of this account: some hundreds for each job, more on many cores.
_LEAST_PROCESSES, _PROCESSES_BY_CORE = 4096, 256
_TRY_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a child may use beside programs, libraries and GPUs.

    run: folders of programs and libraries. read, write: folders. sealed: what stays as it is in those, where that
    can be enforced. append: files. need: names of ESSENTIAL without which the command is not started.
    """

    run: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    sealed: tuple[Path, ...] = ()
    append: tuple[Path, ...] = ()
    need: tuple[str, ...] = ()
    memory_bytes: int
    cpu_s: int
    file_bytes: int

    def around(self, command: Sequence[str]) -> list[str]:
        """The command line that runs the command so; the command itself where that is not possible."""
        if not _is_wanted():
            return list(command)
        asked = {
            "command": list(command),
            "list": _paths([Path("/dev"), _package().parent]),
            "read": _paths([Path("/proc"), Path("/sys"), _package(), *_of_etc(), *self.read]),
            "run": _paths([*map(Path, _SYSTEM), *_of_python(), *_of_variables(), *self.run]),
            "use": _paths([*(Path("/dev", name) for name in _DEVICES), *Path("/dev").glob("nvidia*")]),
            "append": _paths(self.append),
            "write": _paths(self.write),
            "sealed": _paths(self.sealed),
            "need": list(self.need),
            "memory_bytes": self.memory_bytes,
            "cpu_s": self.cpu_s,
            "file_bytes": self.file_bytes,
            "processes": max(_LEAST_PROCESSES, _PROCESSES_BY_CORE * core_count()),
        }
        return [sys.executable, "-I", "-S", "-c", _START, str(_package().parent), json.dumps(asked)]


def _is_wanted() -> bool:
    return sys.platform.startswith("linux") and not _is_off()


def _is_off() -> bool:
    """A way out, should a driver need what is forbidden."""
    return os.environ.get("AWQ_BOT_ISOLATION", "").strip().lower() == "off"


def _package() -> Path:
    return Path(bot.__file__).resolve().parent


def _paths(paths: Iterable[Path]) -> list[str]:
    """Absolute, and without the same one twice. A link is followed."""
    return list(dict.fromkeys(str(path.resolve()) for path in paths))


def _of_python() -> Iterator[Path]:
    """The interpreter and its packages. The folder that the bot was started in is not one of them."""
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix))
    yield Path(sys.executable).resolve().parent
    not_packages = {Path.cwd(), _package().parent}
    yield from (path for name in sys.path if name and (path := Path(name).resolve()) not in not_packages)
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())


def _of_variables() -> Iterator[Path]:
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH"):
        yield from (Path(part) for part in os.environ.get(name, "").split(os.pathsep) if part.startswith("/"))


def _of_etc() -> Iterator[Path]:
    """Files that every account can read; of folders, those without secrets of root."""
    folder = Path("/etc")
    yield from (folder / name for name in _FOLDERS_OF_ETC)
    yield from (path for path in folder.iterdir() if path.is_file() and path.stat().st_mode & 0o004)


# --- what is in force ---------------------------------------------------------------------------------------


@cache
def in_force() -> dict[str, tuple[str, ...]]:
    """By name of what is protected, the mechanisms on this machine; found by starting a process. Without: none."""
    found: dict[str, list[str]] = {}
    if _is_wanted():
        confinement = Confinement(memory_bytes=1 << 30, cpu_s=_TRY_S, file_bytes=1 << 20)
        with tempfile.TemporaryDirectory() as home:
            done = subprocess.run(
                confinement.around(()),
                env=child_environment(Path(home)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TRY_S,
                check=False,
            )
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    return {name: tuple(found.get(name, ())) for name in _PROTECTS}


def require() -> None:
    """Raises EnvironmentProblem where something essential cannot be enforced here."""
    if missing := missing_here():
        raise not_isolated(missing)


def missing_here() -> list[str]:
    """The names of ESSENTIAL that cannot be enforced on this machine."""
    return [name for name in ESSENTIAL if not in_force()[name]]


def not_isolated(missing: Sequence[str] = ()) -> EnvironmentProblem:
    could = "; ".join(f"{name}: it could {_PROTECTS[name]}" for name in missing)
    return EnvironmentProblem(
        "a child process that reads the model's files cannot be isolated on this machine"
        + (f" ({could})" if could else ""),
        hint=_how_to(),
    )


def _how_to() -> str:
    return "AWQ_BOT_ISOLATION is off: unset it." if _is_off() else _HOW_TO


def check_children(*, required: bool) -> Iterator[Check]:
    """For `doctor`, a line per protection. required: without an essential one a check fails."""
    for name, mechanisms in in_force().items():
        what = f"isolation: {name}"
        if mechanisms:
            yield Check(name=what, status="ok", found=", ".join(mechanisms))
        else:
            essential = name in ESSENTIAL
            fix = _how_to() if essential or _is_off() else "It needs user namespaces, which are not allowed here."
            found = f"a child process can {_PROTECTS[name]}"
            yield Check(name=what, status="failed" if essential and required else "warning", found=found, fix=fix)
