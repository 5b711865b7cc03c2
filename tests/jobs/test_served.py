"""A real release, loaded in gptqmodel, and in vLLM for CPU, before it is published. Installing takes minutes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bot.errors import QualityGateError
from bot.jobs import stages
from bot.jobs.folder import JobDir, evaluate_inputs
from bot.jobs.serving import Serving, serve_with
from bot.records import Engine, QuantizedModel, Reference, Report, no_progress
from bot.serve.engines import engine_folder, engine_python
from tests.support.engines import ENGINE, NO_HUB
from tests.support.sandbox import Quantized, Sandbox, build_sandbox, watchlist
from tests.test_server_names import PINS as VLLM_PINS
from tests.test_server_names import UNUSABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SERVE = 'defaults:\n  serve: {gptqmodel: "7.6.0"}\n'


@pytest.fixture(scope="module")
def ready(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """All but publishing is done."""
    sandbox = build_sandbox(tmp_path_factory.mktemp("served"), models=("qwen3-tiny",))
    (sandbox.root / "watchlist.yaml").write_text(watchlist("qwen3-tiny").replace("defaults:\n", SERVE))
    engine_python(ENGINE, no_progress)  # on a busy machine it takes longer than a command may here
    with sandbox.hub:
        sandbox.prepare(quantized)
        done = sandbox.call("run", "--dry-run")
        assert done.returncode == 0, done.stderr
        yield sandbox


def test_it_is_within_the_bound_and_the_report_says_how_close(ready: Sandbox) -> None:
    [folder] = ready.jobs
    report = JobDir(folder).load(Report)
    assert report is not None
    [served] = report.served
    print(served)
    assert (served.engine, served.version, served.device) == ("gptqmodel", "7.6.0", "CPU")
    assert re.fullmatch(r"\w*Awq\w*Linear", served.kernel)
    assert served.tokens == 2044
    assert 0 < served.mean_difference < 0.02
    assert served.agreement == 1.0
    assert served.tokens_per_s > 0
    assert served.versions["gptqmodel"] == "7.6.0"


@pytest.fixture(scope="module")
def vllm() -> Engine:
    """Installed: vLLM for CPU in the place of that for GPUs. Of VLLM_PYTHON's environment, if that is set."""
    engine = Engine(name="vllm", version="0.32.0")
    folder = engine_folder(engine)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if named := os.environ.get("VLLM_PYTHON"):
        folder.symlink_to(Path(named).parents[1])
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *VLLM_PINS], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSABLE, "torchvision"], check=True)
    (folder / ".complete").touch()
    return engine


def test_vllm_reads_the_same_without_a_network(ready: Sandbox, vllm: Engine) -> None:
    [folder] = ready.jobs
    jobdir = JobDir(folder)
    quantized, reference = jobdir.load(QuantizedModel), jobdir.load(Reference)
    assert quantized is not None
    assert reference is not None
    served = serve_with(vllm, jobdir, quantized, reference, Serving(limit_s=600.0, progress=no_progress))
    print(served)
    assert (served.kernel, served.device, served.versions["vllm"]) == ("CPUWNA16LinearKernel", "CPU", "0.32.0")
    assert (served.tokens, served.agreement) == (2044, 1.0)
    assert 0 < served.mean_difference < 0.01


def test_an_artifact_that_was_damaged_after_evaluation_is_refused(ready: Sandbox) -> None:
    [folder] = ready.jobs
    jobdir = JobDir(folder)
    quantized, report = jobdir.load(QuantizedModel), jobdir.load(Report)
    assert quantized is not None
    assert report is not None
    jobdir.store(replace(report, served=()), inputs=evaluate_inputs(jobdir.job, quantized))
    weights = jobdir.quantized / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.scales"))
    intact = weights.read_bytes()
    save_file(tensors | {name: tensors[name] * 2}, weights, metadata={"format": "pt"})
    context = stages.JobContext(hub=NO_HUB, work=folder.parent, files=folder, progress=no_progress)
    with pytest.raises(
        QualityGateError, match=r"served with gptqmodel 7\.6\.0: log-probabilities of 2,044 tokens"
    ):
        stages.serve(context, jobdir)
    weights.write_bytes(intact)
    jobdir.store(report, inputs=evaluate_inputs(jobdir.job, quantized))


def test_a_second_run_starts_no_engine_and_publishes_what_was_served(ready: Sandbox) -> None:
    done = ready.call("run")
    assert done.returncode == 0, done.stderr
    assert "serve with" not in done.stderr
    provenance = json.loads(ready.hub.files("quantized/qwen3-tiny-awq")["provenance.json"])
    [served] = provenance["report"]["served"]
    assert served["engine"] == "gptqmodel"
