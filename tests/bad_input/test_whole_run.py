"""One run over good and bad models: the bad ones are refused with their reasons, and the good one is published."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest
import yaml

from bot.localhub import LocalHub
from tests.bad_input.case import Case, Kind, Place, Refused
from tests.bad_input.cases import CASES
from tests.bad_input.places import TEXT
from tests.bad_input.plans import files_of, repo_of
from tests.support.sandbox import PATIENCE_S, Sandbox
from tests.support.small_sandbox import SOURCE, Result, assert_published, small_model, write_watchlist

# The most telling ones, by where they are refused.
_BY_THE_PLAN = (
    (Kind.WEIGHTS, "git-lfs-pointer-instead-of-the-weights"),
    (Kind.WEIGHTS, "index-that-names-a-shard-that-is-not-there"),
    (Kind.WEIGHTS, "adapter-alone"),
    (Kind.CONFIG, "a-billion-layers"),
    (Kind.TEMPLATE, "not-utf-8"),
    (Kind.NAMES, "licence-name-with-escape-sequences"),
)
_BY_THE_RUN = ((Kind.TEMPLATE, "nested-loops-without-end"),)


def _case(kind: Kind, name: str, place: Place) -> Case:
    [found] = [case for case in CASES if (case.kind, case.name, case.place) == (kind, name, place)]
    return found


@pytest.mark.slow
def test_others_get_their_turn_and_the_exit_code_is_that_of_the_first_failure(
    hub: LocalHub, tmp_path: Path
) -> None:
    planned = [_case(kind, name, Place.PLAN) for kind, name in _BY_THE_PLAN]
    run = [_case(kind, name, Place.TOKENIZER) for kind, name in _BY_THE_RUN]
    sandbox = Sandbox(hub, tmp_path)
    for case in (*planned, *run):
        hub.seed(repo_of(case), files_of(case))
    hub.seed(SOURCE, small_model())
    models = [{"repo_id": repo_of(case), **case.entry} for case in (*run, *planned)]
    defaults = {
        "calibration": {"samples": 16, "seq_len": 64, "sources": [{"file": "notes.txt"}]},
        "gate": {"max_kl": 100, "min_top1": 0, "max_perplexity_ratio": 100},
    }
    document = {"publish_to": "quantized", "defaults": defaults, "models": [*models, {"repo_id": SOURCE}]}
    write_watchlist(sandbox, yaml.safe_dump(document))
    (sandbox.root / "notes.txt").write_text(TEXT)

    with _group_of(sandbox.start("run")) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    result = Result((), process.returncode, out, err)

    shown = result.stdout + result.stderr
    assert "Traceback" not in shown
    assert "bug in awq-bot" not in shown
    assert not any(char in shown for char in ("\x1b[31mred", "\n::error"))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for case in (*planned, *run):
        assert isinstance(case.right, Refused)
        assert [line for line in errors if case.right.names in line], (case.name, errors)
    assert len(errors) == len(planned) + len(run)
    [failed] = run
    assert isinstance(failed.right, Refused)
    assert result.returncode == failed.right.exit_code
    assert {repo.repo_id for repo in hub.store.repos("model") if repo.namespace == "quantized"} == {
        "quantized/small-awq"
    }
    result.returncode = 0
    assert_published(sandbox, result)


@contextmanager
def _group_of(process: Popen[str]) -> Iterator[Popen[str]]:
    """One that hangs is ended with its children, so that the test fails."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
