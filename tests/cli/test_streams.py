"""What libraries print and log: without secrets, whoever writes it, and wherever to."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bot.cli.streams import RedactedRecord

SECRET = "a-secret-of-ours-8f"
START = """
import logging, os, sys, threading, warnings
early = logging.StreamHandler()  # as libraries make theirs when they are imported: of the stream before ours
logging.getLogger("library").addHandler(early)
from bot.cli.streams import prepare_streams
prepare_streams()
secret = os.environ["ANY_TOKEN"]
"""
WAYS = {
    "print": "print(secret)",
    "print to stderr": "print(secret, file=sys.stderr)",
    "lines": "sys.stdout.writelines([secret])",
    "warning": "warnings.warn(secret)",
    "log": "logging.getLogger('library').warning('with %s', secret)",
    "log that is formatted later": "logging.getLogger('library').warning('%s%s', secret[:5], secret[5:])",
    "log of an error": "\ntry:\n    raise ValueError(secret)\nexcept ValueError:\n"
    "    logging.getLogger('library').exception('failed')",
    "log without a handler": "logging.getLogger('another').error(secret)",
    "error": "raise ValueError(f'asked with {secret}')",
    "error with a cause": "\ntry:\n    open(f'/{secret}')\nexcept OSError as it:\n    raise ValueError from it",
    "error with a note": "error = ValueError(); error.add_note(secret); raise error",
    "errors in a group": "raise ExceptionGroup('both', [ValueError(secret), KeyError(secret)])",
    "error in a thread": "threading.Thread(target=lambda: int(secret)).start()",
    "error while it is deleted": "\nclass Odd:\n    def __del__(self): raise ValueError(secret)\nOdd()",
}


ENDING = ("error", "error with a cause", "error with a note", "errors in a group")


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "ANY_TOKEN": SECRET}
    return subprocess.run(
        [sys.executable, "-c", START + code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_is_printed_in_no_way(way: str) -> None:
    done = run(WAYS[way])
    said = done.stdout + done.stderr
    assert "***" in said
    assert SECRET not in said
    assert (done.returncode == 1) == (way in ENDING)


KEY = """
lines = ["-----BEGIN EC PRIVATE KEY-----", "AbCd" * 16, "-----END EC PRIVATE KEY-----"]
def fail():
    error = ValueError("no key:"); error.add_note("\\n".join(lines)); raise error
"""


@pytest.mark.parametrize(
    "way",
    [
        "fail()",
        "threading.Thread(target=fail).start()",
        "\nclass Odd:\n    def __del__(self): fail()\nOdd()",
        "\ntry:\n    fail()\nexcept ValueError:\n    logging.getLogger('library').exception('failed')",
    ],
    ids=["error", "thread", "unraisable", "log"],
)
def test_a_key_that_is_printed_line_by_line_is_redacted_as_a_whole(way: str) -> None:
    """It is in no variable, so only its first and last line show that it is one."""
    said = run(KEY + way).stderr
    assert "ValueError: no key:\n***" in said
    assert "AbCdAbCd" not in said


def test_a_traceback_is_as_python_prints_it() -> None:
    done = run("int('x')")
    lines = done.stderr.splitlines()
    assert (lines[0], lines[-1]) == (
        "Traceback (most recent call last):",
        "ValueError: invalid literal for int() with base 10: 'x'",
    )


def test_a_log_record_keeps_all_but_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_TOKEN", SECRET)
    record = RedactedRecord("name", logging.INFO, __file__, 1, "%s of %d", (SECRET, 2), None)
    assert record.getMessage() == "*** of 2"
    assert logging.Formatter("%(levelname)s %(message)s").format(record) == "INFO *** of 2"
    assert RedactedRecord("name", logging.INFO, __file__, 1, "100 %", (), None).getMessage() == "100 %"


def test_a_process_with_a_secret_dumps_no_core(tmp_path: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096))\n"
        "from bot.jobs.environment import forbid_core_dumps; forbid_core_dumps()\n"
        "import ctypes; dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), dumpable)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    for more, expected in (({}, "(4096, 4096) 1"), ({"HF_TOKEN": SECRET}, "(0, 4096) 0")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
