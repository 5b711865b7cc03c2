"""The stage `serve`: engines as real child processes, and what becomes of those that hang, crash or lie.

Most engines here are stand-ins: scripts with an answer, started as the real one is.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bot.errors import BotError, EnvironmentProblem, PublishError, QualityGateError, WatchlistError
from bot.jobs import stages
from bot.jobs.folder import JobDir, evaluate_inputs
from bot.jobs.handover import _check_served, _Handover
from bot.jobs.isolation import in_force
from bot.jobs.serving import Serving, check_engines, serve_with
from bot.records import Card, Engine, Reference, Report, Served, WatchEntry, no_progress
from tests.support.engines import (
    ANSWER,
    ENGINE,
    NO_HUB,
    REFERENCE,
    answering,
    served,
    shifted,
    stand_in_environment,
)
from tests.support.factories import entry, job, quantized, report


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobDir:
    """An evaluated job whose entry asks for an engine, which is installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stand_in_environment()
    return evaluated(tmp_path / "job", entry(serve=(ENGINE,)))


def evaluated(folder: Path, of: WatchEntry) -> JobDir:
    jobdir = JobDir(folder)
    jobdir.store(job(of))
    jobdir.store(quantized())
    inputs = evaluate_inputs(job(of), quantized())
    jobdir.store(report(), inputs=inputs)
    jobdir.store(REFERENCE, inputs=inputs)
    jobdir.quantized.mkdir()
    (jobdir.quantized / "config.json").write_text("{}")
    return jobdir


def serve(jobdir: JobDir, script: Path, limit_s: float = 60.0) -> Served:
    how = Serving(limit_s=limit_s, progress=no_progress, script=script)
    return serve_with(ENGINE, jobdir, quantized(), REFERENCE, how)


def refusal(jobdir: JobDir, script: Path, kind: type[BotError] = QualityGateError, limit_s: float = 60.0) -> str:
    with pytest.raises(kind) as caught:
        serve(jobdir, script, limit_s)
    assert caught.value.message.startswith("served with gptqmodel 7.6.0: ")
    assert not (jobdir.hf_home / "serve" / "gptqmodel").exists()
    return caught.value.message.partition(": ")[2]


def test_an_engine_that_agrees_is_recorded_in_the_report_and_not_started_again(
    asked: JobDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = answering(tmp_path / "engine.py", shifted(ANSWER, 0.01))
    monkeypatch.setattr(stages, "Serving", lambda **fields: Serving(**fields, script=script))
    context = stages.JobContext(hub=NO_HUB, work=tmp_path, files=tmp_path, progress=no_progress)
    made = stages.serve(context, asked)
    (found,) = made.served
    assert (found.engine, found.version, found.tokens) == ("gptqmodel", "7.6.0", 6)
    assert found.mean_difference == pytest.approx(0.01)
    assert asked.load(Report, inputs=evaluate_inputs(asked.job, quantized())) == made
    shutil.rmtree(tmp_path / "cache")
    asked.forget(Reference)
    assert stages.serve(context, asked) == made


def test_it_sees_the_artifact_and_no_secret_and_can_change_nothing(
    asked: JobDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_force()["files"]:
        pytest.skip("files are not protected on this machine")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    (asked.path / "secret").write_text("x")
    code = f"""
import os, socket
request = json.loads(Path(sys.argv[1]).read_text())
Path(request["model"], "config.json").read_text()
found = [name for name, value in os.environ.items() if "hf_of" in value or name.startswith("PYTHONPATH")]
def tried(name, do):
    try:
        do()
    except OSError:
        return
    found.append(name)
tried("write", lambda: Path(request["model"], "config.json").write_text(""))
tried("add", lambda: Path(request["model"], "new").write_text(""))
tried("read", lambda: Path({str(asked.path / "secret")!r}).read_text())
tried("report", lambda: Path({str(asked.record_path(Report))!r}).write_text(""))
tried("network", lambda: socket.create_connection(("127.0.0.1", 9), timeout=1))
answer["kernel"] = " ".join(found) or "nothing"
"""
    assert serve(asked, answering(tmp_path / "engine.py", ANSWER, code)).kernel == "nothing"
    assert (asked.quantized / "config.json").read_text() == "{}"


def test_one_that_hangs_is_stopped(asked: JobDir, tmp_path: Path) -> None:
    script = answering(tmp_path / "engine.py", ANSWER, "import time; time.sleep(600)")
    assert refusal(asked, script, limit_s=2.0) == "it was stopped after 2 s"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('no kernel\\nfits this GPU')", "it ended with code 1 and said 'fits this GPU'"),
        ("import os; os.abort()", "it was killed by SIGABRT and said 'it says nothing'"),
        ("sys.exit(0)", "it gave no answer"),
        ("Path(sys.argv[2]).write_text('<html>'); sys.exit(0)", "its answer is none: Invalid JSON"),
        ("answer = []", "its answer is none: Input should be an object"),
        ("del answer['scores']", "its answer is none: scores Field required"),
        ("answer['tokens_per_s'] = 'fast'", "its answer is none: tokens_per_s Input should be a valid number"),
        ("answer['scores'][0]['log_probs'][1] = float('nan')", "its answer is none: nan is not a finite number"),
        ("answer['scores'][1]['log_probs'].pop()", "its answer is none: 2 values for 4 tokens"),
        ("answer['kernel'] = 'x' * (1 << 25)", "its answer is none: it is too long"),
        ("Path(sys.argv[2]).mkdir(); sys.exit(0)", "it gave no answer"),
        (
            "for row in answer['scores']: row['log_probs'] = [value * 2 for value in row['log_probs']]",
            "log-probabilities of 6 tokens differ from our evaluation's by 1.375 nats on average",
        ),
    ],
)
def test_one_that_fails_or_answers_something_else_is_a_gate_and_named(
    asked: JobDir, tmp_path: Path, code: str, message: str
) -> None:
    assert refusal(asked, answering(tmp_path / "engine.py", ANSWER, code)).startswith(message)


def test_one_that_is_killed_is_a_problem_of_the_machine(asked: JobDir, tmp_path: Path) -> None:
    script = answering(tmp_path / "engine.py", ANSWER, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert refusal(asked, script, EnvironmentProblem) == "it was killed by SIGKILL"


def test_vllm_is_refused_before_anything_is_downloaded_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_engines((ENGINE,))
    with pytest.raises(EnvironmentProblem, match="serve: vllm needs a CUDA GPU") as caught:
        check_engines((Engine(name="vllm", version="0.32"),))
    assert "`gptqmodel`" in caught.value.hint


def test_without_a_reference_the_evaluation_is_made_again(asked: JobDir) -> None:
    assert stages._measured(asked, quantized()) == report()
    asked.forget(Reference)
    assert stages._measured(asked, quantized()) is None
    done = replace(report(), served=(served(),))
    asked.store(done, inputs=evaluate_inputs(asked.job, quantized()))
    assert stages._measured(asked, quantized()) == done


def test_engines_that_are_taken_out_of_the_watchlist_leave_the_report(asked: JobDir, tmp_path: Path) -> None:
    inputs = evaluate_inputs(asked.job, quantized())
    asked.store(replace(report(), served=(served(),)), inputs=inputs)
    asked.forget(Reference)
    asked.store(job(entry()))
    assert stages._measured(asked, quantized()) is not None
    context = stages.JobContext(hub=NO_HUB, work=tmp_path, files=tmp_path, progress=no_progress)
    assert stages.serve(context, asked) == report()


def test_the_stage_without_an_evaluation_says_what_to_run(asked: JobDir, tmp_path: Path) -> None:
    asked.forget(Report)
    context = stages.JobContext(hub=NO_HUB, work=tmp_path, files=tmp_path, progress=no_progress)
    with pytest.raises(WatchlistError, match="`evaluate` has not run yet"):
        stages.serve(context, asked)


def test_an_artifact_of_another_machine_needs_the_planned_engines_within_the_bounds(tmp_path: Path) -> None:
    asked = job(entry(serve=(ENGINE,)))

    def problem(*found: Served) -> str:
        measured, jobdir = report(served=found), JobDir(tmp_path)
        handover = _Handover(
            job=asked, jobdir=jobdir, card=Card(files=()), quantized=quantized(), report=measured, run=None
        )
        try:
            _check_served(handover)
        except PublishError as error:
            return error.message
        return ""

    assert problem(served()) == ""
    for other in ((), (served(version="7.6.1"),), (served(engine="vllm"),), (served(), served())):
        assert "it was not loaded in the planned engines" in problem(*other)
    assert "served with gptqmodel 7.6.0: log-probabilities of 2,044" in problem(served(mean_difference=0.3))


def test_a_pull_looks_at_the_engines_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    jobdir = JobDir(tmp_path / "job")
    jobdir.store(job(entry(serve=(Engine(name="vllm", version="0.32"),))))
    context = stages.JobContext(hub=NO_HUB, work=tmp_path, files=tmp_path, progress=no_progress)
    with pytest.raises(EnvironmentProblem, match="vllm needs a CUDA GPU"):
        stages.pull(context, jobdir)
