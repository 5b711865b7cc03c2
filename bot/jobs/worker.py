"""Child processes for what needs torch: no token in their environment, and isolated as the machine allows.

That frees GPU memory, keeps untrusted files away from everything else, and lets a killed stage be started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from bot.errors import BotError, EnvironmentProblem, QuantizationError, UpstreamError
from bot.files import disk_errors
from bot.jobs.confined import NOT_ISOLATED, PARENT
from bot.jobs.environment import child_environment, close_environment
from bot.jobs.folder import JobDir
from bot.jobs.isolation import ESSENTIAL, Confinement, not_isolated, require
from bot.jobs.machine import core_count, memory_bytes
from bot.records import Card, Job, JobResult, Publication, Reference, Report, from_json, to_json
from bot.text import duration

# Of children that read no weights. They take seconds to import transformers, and a minute for many experts.
SMALL_S = 300.0
_SMALL_BYTES = 1 << 34
_CLEANUP_S = 30.0
# More than the largest file of any model: shards have 5 GB, and a layer of many experts some ten.
_LARGEST_FILE_BYTES = 1 << 37
_SMALL_FILE_BYTES = 1 << 28

# A child's variable: the number of a pipe for how it failed, should the disk be full.
FAILURE = "AWQ_BOT_FAILURE"
_MOST_FAILURE_BYTES = 1 << 16  # what a pipe holds: https://man7.org/linux/man-pages/man7/pipe.7.html

# What has not run yet when these end: a model's code could have written it.
_LATER: dict[str, tuple[type, ...]] = {
    "trial": (Card, Publication),
    "quantize": (Reference, Report, Card, Publication),
    "evaluate": (Card, Publication),
}

_SET_PARENT_DEATH_SIGNAL = 1  # of linux/prctl.h


def run_child(
    verb: str, jobdir: JobDir, *, limit_s: float, options: tuple[str, ...] = (), require_isolation: bool = False
) -> None:
    """`python -m bot VERB --job DIR`, its stderr on ours, for limit_s at most and in this machine's memory.

    It can write to the job's folder only. Raises the error that the child recorded; QuantizationError when it
    changed job.json, which says where to publish; with require_isolation EnvironmentProblem, where it cannot be
    isolated here.
    """
    if require_isolation:
        require()
    jobdir.forget(JobResult)
    close_environment()
    _make_home(jobdir.hf_home)
    confinement = Confinement(
        write=(jobdir.path,),
        sealed=(jobdir.source, jobdir.calibration, jobdir.record_path(Job)),
        append=_log_file(options),
        need=ESSENTIAL if require_isolation else (),
        memory_bytes=memory_bytes(),
        cpu_s=int(limit_s * core_count()) + 1,
        file_bytes=_LARGEST_FILE_BYTES,
    )
    job = _content(jobdir.record_path(Job))
    with _pipe() as (failure, write):
        child = subprocess.Popen(
            confinement.around([sys.executable, "-m", "bot", *options, verb, "--job", str(jobdir.path)]),
            env=child_environment(jobdir.hf_home) | {FAILURE: str(write)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(write,),
        )
        code, said = _wait(child, verb, jobdir, limit_s), _read(failure)
    if _content(jobdir.record_path(Job)) != job:
        hint = "Code of the model did it: do not trust this model. Delete the job's folder."
        raise QuantizationError(f"{jobdir.path}: {verb} changed job.json", hint=hint)
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise error_of(verb, jobdir, code, said)


def _wait(child: subprocess.Popen[bytes], verb: str, jobdir: JobDir, limit_s: float) -> int:
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise _took_too_long(verb, limit_s) from None
    except KeyboardInterrupt:
        # Ctrl-C reached the child as well; it cleans up and ends.
        child.wait()
        raise
    finally:
        _end(child)
        for kind in _LATER[verb]:
            jobdir.forget(kind)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Its two ends. Reading does not wait: a process that is left over may hold the other end."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, _MOST_FAILURE_BYTES)
    except BlockingIOError:  # it is empty
        return b""


def _end(child: subprocess.Popen[bytes]) -> None:
    """It is asked to clean up first, which a loop in compiled code does not hear."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_CLEANUP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _make_home(home: Path) -> None:
    with disk_errors(home):
        (home / "tmp").mkdir(parents=True, exist_ok=True)


def _log_file(options: tuple[str, ...]) -> tuple[Path, ...]:
    """Which the child writes to as well."""
    return tuple(Path(path) for name, path in pairwise(options) if name == "--log-file")


def _took_too_long(verb: str, limit_s: float) -> BotError:
    if verb == "trial":
        return UpstreamError(
            f"the tokenizer, chat template or generation config took more than {duration(limit_s)} to try",
            hint="It has to be corrected upstream.",
        )
    return QuantizationError(
        f"{verb} was stopped after {duration(limit_s)}, many times what the plan estimated",
        hint="Run it again: it resumes. If it goes no further, put the model on `hold:`.",
    )


def ask_child(verb: str, question: str) -> str:
    """`python -m bot VERB` with the question on its stdin. Returns its stdout.

    Raises EnvironmentProblem when the child fails.
    """
    close_environment()
    pipe = subprocess.PIPE
    with tempfile.TemporaryDirectory() as home:
        _make_home(Path(home))
        confinement = Confinement(
            write=(Path(home),),
            memory_bytes=min(_SMALL_BYTES, memory_bytes()),
            cpu_s=int(SMALL_S * core_count()),
            file_bytes=_SMALL_FILE_BYTES,
        )
        command = confinement.around([sys.executable, "-m", "bot", verb])
        environment = child_environment(Path(home))
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
            try:
                answer, said = child.communicate(question, SMALL_S)
            except subprocess.TimeoutExpired:
                raise EnvironmentProblem(f"{verb} took more than {duration(SMALL_S)}") from None
            finally:
                child.kill()
    if child.returncode != 0:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise EnvironmentProblem(f"{verb} ended with code {child.returncode} and said {last!r}")
    return answer


def end_with_parent() -> None:
    """Called in a child: end when the parent is killed, so that two processes never write to one folder."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415 - most verbs need none of it

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def record_failure(jobdir: JobDir, failed: JobResult) -> None:
    """Called in a child, for its parent: in the job's folder, or through the pipe where that cannot be written."""
    try:
        jobdir.store(failed)
    except EnvironmentProblem:
        if FAILURE not in os.environ:
            raise
        os.write(int(os.environ[FAILURE]), to_json(failed).encode())


def error_of(verb: str, jobdir: JobDir, code: int, said: bytes = b"") -> BotError:
    """Why a child ended with this code. said: through its pipe."""
    result = jobdir.load(JobResult) or _result(said)
    if result is not None and result.error is not None:
        return result.error
    if code == NOT_ISOLATED:
        return not_isolated()
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "It may have run out of memory: see `dmesg`. Run it again; it resumes."
            if -code == signal.SIGKILL
            else ""
        )
        return QuantizationError(f"{verb} was killed by {name}", hint=hint)
    return QuantizationError(f"{verb} ended with code {code}", hint=f"See its output above, and {jobdir.path}.")


def _result(said: bytes) -> JobResult | None:
    try:
        return from_json(JobResult, said) if said else None
    except ValueError:  # a model's code can write there too
        return None
