"""The command line in a process that has imported what it needs already: a second where it would take ten.

One process imports, and forks for each command. What a command would learn at import, from the environment, it
learns only once.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from bot.jobs.confined import PARENT
from tests.support.full_disk import Disk, ask, listener_of

Result = subprocess.CompletedProcess[str]
_IMPORTED = ("bot.cli.app", "bot.jobs.tasks", "bot.jobs.model", "bot.quantize.artifact", "bot.evaluate.metrics")
_PICTURES = (
    "bot.evaluate.plots",
    "bot.evaluate.positions",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
_MOST_BYTES = 1 << 16


class Forks:
    """Use `forks` to start one."""

    def __init__(self, commands: socket.socket) -> None:
        self._commands = commands

    def run(
        self,
        *words: str,
        environment: Mapping[str, str],
        cwd: Path,
        disk: Disk | None = None,
        is_child: bool = False,
        keep: Sequence[int] = (),
    ) -> Result:
        """As `python -m bot WORDS`. disk: where it writes. is_child: as a child process of a job, not isolated.

        keep: descriptors that it has under the same numbers.
        """
        ours, theirs = socket.socketpair()
        read, write = zip(os.pipe(), os.pipe(), strict=True)
        asked = {"words": words, "environment": dict(environment), "cwd": str(cwd), "child": is_child}
        content = json.dumps(asked | {"on_disk": disk is not None, "keep": list(keep)}).encode()
        with ours, os.fdopen(read[0]) as out, os.fdopen(read[1]) as err:
            socket.send_fds(self._commands, [content], [theirs.fileno(), *write, *keep])
            for descriptor in write:
                os.close(descriptor)
            theirs.close()
            if disk is None:
                said = out.read(), err.read()
            else:
                with disk.answering(self._listener(ours, err)):
                    said = out.read(), err.read()
            code = int(self._commands.recv(16))
        return Result(words, code, *said)

    def _listener(self, asking: socket.socket, err: IO[str]) -> int:
        """Skips the test where the kernel does not ask. In CI it does, and a skipped test would never run."""
        try:
            return listener_of(asking)
        except EOFError:
            self._commands.recv(16)
            (pytest.fail if os.environ.get("CI") else pytest.skip)(err.read())


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """folder: for what libraries write when they are imported."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)  # another test in this process may have quantized
    server = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno())],
        env=environment | {"TMPDIR": str(folder), "HF_HOME": str(folder), "OMP_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    with ours, server:
        yield Forks(ours)
        ours.close()


# --- the process that forks ---------------------------------------------------------------------------------


def _serve(commands: socket.socket) -> None:
    for name in (*_IMPORTED, *_PICTURES):
        __import__(name)
    while True:
        content, descriptors, _, _ = socket.recv_fds(commands, _MOST_BYTES, 8)
        if not content:
            return
        pid = os.fork()
        if pid == 0:
            commands.close()
            _become(json.loads(content), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        commands.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    answering, out, err, *kept = descriptors
    for number, descriptor in zip((1, 2, *asked["keep"]), (out, err, *kept), strict=True):
        os.dup2(descriptor, number, inheritable=True)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    os.environ.clear()
    os.environ.update(asked["environment"] | ({PARENT: str(os.getppid())} if asked["child"] else {}))
    os.chdir(asked["cwd"])
    sys.argv = ["awq-bot", *asked["words"]]
    if asked["on_disk"]:
        try:
            ask(socket.socket(fileno=answering))
        except OSError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(1)
    from bot.cli.app import main  # noqa: PLC0415 - imported before the fork

    code = 1
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
