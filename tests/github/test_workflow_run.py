"""A whole run of the watch by hand, a process for each job: a real model, the local Hub, tampered artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file, save

from bot.files import describe_file
from bot.github.matrix import matrix_row
from bot.jobs import stages
from bot.jobs.folder import JobDir
from bot.jobs.handover import check_job_dir
from bot.localhub import HubError
from bot.records import Card, ExpertTokens, Job, JobResult, QuantizedModel, Recipe, from_json
from tests.support.engines import served
from tests.support.factories import task_figures
from tests.support.sandbox import Quantized, Sandbox, build_sandbox
from tests.support.tampering import change_report, render_card_again, replace_file
from tests.support.workflow_steps import Runner, StepResult

Record = TypeVar("Record")

MODEL, TARGET = "lab/llama-tiny", "quantized/llama-tiny-awq"


@dataclass(frozen=True)
class Watch:
    """A run whose `quantize` has succeeded, and whose `publish` has not started."""

    sandbox: Sandbox
    runner: Runner
    planned: StepResult
    quantized: StepResult
    job: Job

    @property
    def artifact(self) -> Path:
        return self.runner.root / self.quantized.outputs["artifact"]

    def publish(self, artifact: Path, results: str = "results-of-a-try", plan: str = "plan") -> StepResult:
        words = ("--job-id", self.job.job_id, "--artifact", str(artifact), "--results", results, "--plan", plan)
        return self.runner.step_here("actions", "publish", *words, HF_WRITE_TOKEN=self.sandbox.hub.token())

    def result(self, folder: str) -> JobResult:
        [path] = (self.runner.root / folder).glob(f"result-*/{self.job.job_id}.json")
        return from_json(JobResult, path.read_bytes())


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory, quantized: Quantized) -> Iterator[Watch]:
    sandbox = build_sandbox(tmp_path_factory.mktemp("watch") / "sandbox", models=("llama-tiny",))
    with sandbox.hub:
        reader = sandbox.hub.token("reader", role="read")
        runner = Runner(sandbox.root, {"HF_ENDPOINT": sandbox.hub.endpoint, "HF_TOKEN": reader})
        planned = runner.step("actions", "plan")
        assert planned.code == 0, planned.err
        [row] = json.loads(planned.outputs["quantize"])["include"]
        job = from_json(Job, (sandbox.root / "plan" / f"{row['job_id']}.json").read_bytes())
        # As on a runner that was stopped right after measuring.
        shutil.copytree(quantized("llama-tiny"), sandbox.root / "work" / job.job_id)
        worked = runner.step("actions", "quantize", "--job-id", job.job_id, "--results", "results")
        assert worked.code == 0, worked.err
        yield Watch(sandbox, runner, planned, worked, job)


@pytest.fixture
def copy(watch: Watch, tmp_path: Path) -> Path:
    """The artifact, for a test to tamper with."""
    return Path(shutil.copytree(watch.artifact, tmp_path / "artifact"))


def test_the_plan_is_a_matrix_row_per_job(watch: Watch) -> None:
    outputs = watch.planned.outputs
    assert (outputs["quantize_count"], outputs["refresh_count"]) == ("1", "0")
    assert json.loads(outputs["refresh"]) == {"include": []}
    assert json.loads(outputs["quantize"]) == {"include": [matrix_row(watch.job)]}
    assert "first release" in watch.planned.summary
    assert "1 to quantize" in watch.planned.summary


def test_quantize_passes_on_the_model_and_shows_its_figures_and_card(watch: Watch) -> None:
    assert watch.quantized.outputs["publish"] == "true"
    records = {"job.json", "weights.json", "quantized.json", "report.json", "card.json"}
    assert {path.name for path in watch.artifact.iterdir()} - {".lock"} == records | {"quantized", "card"}
    result, page = watch.result("results"), watch.quantized.summary
    assert (result.status, result.stage, result.target) == ("ready", "quantize", TARGET)
    assert result.report is not None
    assert f"| {result.report.kl_mean:.4f} nats |" in page
    assert f"| {100 * result.report.top1_agreement:.1f} % |" in page
    assert f"vllm serve {TARGET}" in page
    assert "](/" not in page
    assert "![" not in page


def test_no_step_shows_a_token(watch: Watch) -> None:
    reader = watch.sandbox.hub.token("reader", role="read")
    written = [path for path in watch.runner.root.rglob("*.json") if "hub" not in path.parts]
    texts = [watch.planned.everything, watch.quantized.everything, *(path.read_text() for path in written)]
    assert len(texts) > 5
    assert not [text for text in texts if reader in text or watch.sandbox.hub.token() in text]
    assert ("add-mask", "", reader) in watch.planned.commands


def refused(watch: Watch, artifact: Path, said: str) -> None:
    ended = watch.publish(artifact)
    assert ended.code == 7, ended.err
    assert said in ended.err
    result = watch.result("results-of-a-try")
    assert (result.status, result.stage, result.exit_code) == ("failed", "publish", 7)
    with pytest.raises(HubError):
        watch.sandbox.hub.repo(TARGET)


def loaded(folder: Path, kind: type[Record]) -> Record:
    record = JobDir(folder).load(kind)
    assert record is not None
    return record


def with_auto_map(folder: Path, path: str) -> None:
    config = json.loads((folder / "quantized" / path).read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "evil/repo--modeling.Evil"}
    replace_file(folder, path, json.dumps(config).encode())


def without(folder: Path, path: str) -> None:
    next(one / path for one in (folder / "card", folder / "quantized") if (one / path).exists()).unlink()
    files = loaded(folder, Card).files
    JobDir(folder).store(Card(files=tuple(file for file in files if file.path != path)))


def with_picture(folder: Path, path: str) -> None:
    render_card_again(change_report(folder, pictures=("assets/error-by-layer.png", path)))
    assert path in (folder / "card" / "README.md").read_text()


def with_quantized(folder: Path, **fields: Any) -> JobDir:
    JobDir(folder).store(replace(loaded(folder, QuantizedModel), **fields))
    return JobDir(folder)


def with_calibration(folder: Path, **fields: Any) -> None:
    """Its card and its provenance say so, too."""
    used = replace(loaded(folder, QuantizedModel).calibration, **fields)
    render_card_again(with_quantized(folder, calibration=used))


def with_unquantized(folder: Path, names: tuple[str, ...]) -> None:
    """Its config.json lists them, too."""
    render_card_again(with_quantized(folder, modules_to_not_convert=names))
    config = json.loads((folder / "quantized" / "config.json").read_bytes())
    config["quantization_config"]["modules_to_not_convert"] = list(names)
    replace_file(folder, "config.json", json.dumps(config, indent=2).encode())


def with_tensor(folder: Path, name: str) -> None:
    """One more 2-D tensor in the weights."""
    path = folder / "quantized" / "model.safetensors"
    tensors = load_file(path) | {name: np.zeros((8, 256), dtype=np.float16)}
    replace_file(folder, path.name, save(tensors, metadata={"format": "pt"}))


def with_experts(folder: Path, quantized: dict[str, Any] | None, reported: dict[str, Any] | None) -> None:
    """Figures of a mixture in each of the two records; None: not there."""
    counted: dict[str, Any] = {"layer": 0, "experts": 8, "lowest": 3, "median": 5.0, "unseen": 0}
    made = [() if each is None else (ExpertTokens(**counted | each),) for each in (quantized, reported)]
    with_quantized(folder, experts=made[0])
    render_card_again(change_report(folder, experts=made[1]))


def with_other_tag(folder: Path) -> None:
    path = folder / "card" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tag": "upstream-ffffffff-ffffffff"}))
    described = describe_file(folder / "card", path.name)
    files = tuple(described if file.path == path.name else file for file in loaded(folder, Card).files)
    JobDir(folder).store(Card(files=files))


ADVERTISEMENT = "x.png)\n\n# Buy [this](https://evil.example)\n\n![y](assets/error-by-layer.png"
TAMPERING: list[tuple[str, Callable[[Path], object], str]] = [
    ("another model's file", lambda path: (path / "quantized" / "model.bin").write_bytes(b"x"), "is not listed"),
    ("a changed file", lambda path: (path / "quantized" / "tokenizer.json").write_text("{}"), "was recorded"),
    ("a missing file", lambda path: (path / "quantized" / "config.json").unlink(), "but missing"),
    ("a link", lambda path: (path / "card" / "key").symlink_to("/etc/hostname"), "neither a file nor a folder"),
    ("a linked folder", lambda path: (path / "more").symlink_to("/etc"), "neither a file nor a folder"),
    ("something beside it", lambda path: (path / "run.sh").write_text("true"), "does not belong there"),
    ("a damaged record", lambda path: (path / "report.json").write_text("{}"), "missing or damaged"),
    ("no job", lambda path: (path / "job.json").unlink(), "a different job"),
    # From here on the records are brought up to date, too.
    ("code", lambda path: replace_file(path, "evil.py", b"import os"), "'evil.py' is not what upstream has"),
    ("tokenizer", partial(replace_file, path="tokenizer.json", content=b"{}"), "is not what upstream has"),
    *(
        (f"code named in {name}", partial(with_auto_map, path=name), f"'{name}' is not what upstream has")
        for name in ("config.json", "tokenizer_config.json")
    ),
    *(
        (f"no {name}", partial(without, path=name), f"'{name}' is missing")
        for name in ("README.md", "config.json", "provenance.json")
    ),
    ("other samples", partial(with_calibration, samples=7), "its calibration is not the planned one"),
    ("other length", partial(with_calibration, seq_len=7), "its calibration is not the planned one"),
    ("other seed", partial(with_calibration, seed=7), "its calibration is not the planned one"),
    *(
        (f"{name} left out", partial(without, path=name), f"upstream's '{name}' is missing")
        for name in ("LICENSE", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    ),
    *(
        (f"picture {number}", partial(with_picture, path=path), "is not one of its pictures")
        for number, path in enumerate((ADVERTISEMENT, "https://evil.example/x.png", "assets/other.png"))
    ),
    *(
        (f"hash {number}", partial(with_calibration, sha256=text), "sha256 of its calibration is not a sha256")
        for number, text in enumerate(("`\n\n# Buy [this](https://evil.example)\n\n`", "5E" * 32, "5e" * 31, ""))
    ),
    (
        "hash of the text",
        lambda path: render_card_again(change_report(path, text_sha256="any words")),
        "the sha256 of its text is not a sha256",
    ),
    (
        "measured on other text",
        lambda path: render_card_again(change_report(path, sources=())),
        "it was not measured on the planned text",
    ),
    (
        "measured on a task that was not planned",
        lambda path: render_card_again(change_report(path, tasks=(task_figures(),))),
        "it was not measured on the planned tasks",
    ),
    (
        "served with an engine that was not planned",
        lambda path: render_card_again(change_report(path, served=(served(),))),
        "it was not loaded in the planned engines",
    ),
    ("other figures", lambda path: change_report(path, kl_mean=9.0), "its card does not follow from its records"),
    (
        "figures that miss the gate",
        lambda path: stages.card(change_report(path, kl_mean=9.0)),
        "mean KL divergence 9 nats is above max_kl 0.3",
    ),
    *(
        (f"not a module {number}", partial(with_unquantized, names=(name,)), "is not a module's path")
        for number, name in enumerate(("", "a b", "`x`", "model.layers.0.\nmlp", "a..b", "x" * 300))
    ),
    (
        "quantized modules in the list",
        partial(with_unquantized, names=("model.layers.0.self_attn",)),
        "lists 'model.layers.0.self_attn' as not quantized, and 'model.layers.0.self_attn.k_proj' is",
    ),
    (
        "a module outside of the list",
        partial(with_tensor, name="model.layers.0.mlp.gate.weight"),
        "'model.layers.0.mlp.gate' is not quantized, and is not listed",
    ),
    ("no weights", partial(replace_file, path="model.safetensors", content=b"x"), "its weights cannot be read"),
    *(
        (f"experts {number}", partial(with_experts, quantized=quantized, reported=reported), "figures of experts")
        for number, (quantized, reported) in enumerate(
            [
                ({}, None),
                (None, {}),
                ({}, {"unseen": 1}),
                *(
                    (other, other)
                    for other in ({"unseen": 9}, {"lowest": -1}, {"lowest": 7}, {"median": 1e999}, {"layer": -1})
                ),
            ]
        )
    ),
    ("another recipe", partial(with_quantized, recipe=Recipe(group_size=64)), "its recipe is not the planned one"),
    ("another tag", with_other_tag, "not follow from its source"),
]


@pytest.mark.parametrize(("tamper", "said"), [item[1:] for item in TAMPERING], ids=[item[0] for item in TAMPERING])
def test_an_artifact_that_was_tampered_with_is_not_published(
    watch: Watch, copy: Path, tamper: Callable[[Path], object], said: str
) -> None:
    tamper(copy)
    refused(watch, copy, said)


def test_an_artifact_that_is_only_rendered_again_is_accepted(watch: Watch, copy: Path) -> None:
    originals = watch.runner.root / "plan" / "originals" / watch.job.job_id
    forged = render_card_again(JobDir(copy))
    assert check_job_dir(watch.job, forged, originals).path == forged


def test_upstreams_files_are_compared_with_those_of_the_plan(watch: Watch, tmp_path: Path) -> None:
    plan = shutil.copytree(watch.runner.root / "plan", tmp_path / "plan")
    originals = plan / "originals" / watch.job.job_id
    assert {path.name for path in originals.iterdir()} == {"config.json", "tokenizer_config.json"}
    config = originals / "config.json"
    config.write_bytes(config.read_bytes().replace(b"1e-05", b"1e-06"))
    ended = watch.publish(watch.artifact, plan=str(plan))
    assert ended.code == 7
    assert "'config.json' is not what upstream has" in ended.err
    shutil.rmtree(originals)
    assert watch.publish(watch.artifact, plan=str(plan)).code == 7


def test_no_artifact_is_nothing_to_publish_and_an_unplanned_job_is_refused(watch: Watch, tmp_path: Path) -> None:
    ended = watch.publish(tmp_path / "nothing", results="results-of-nothing")
    assert (ended.code, "nothing to publish" in ended.out) == (0, True)
    assert not (watch.runner.root / "results-of-nothing").exists()
    for job_id in ("quantized--other-awq-00000000-00000000", "../plan/plan", "plan"):
        ended = watch.runner.step_here("actions", "quantize", "--job-id", job_id)
        assert ended.code in (2, 8), ended.err
        assert ended.outputs == {}


def test_the_artifact_is_published_once_and_the_next_plan_is_empty(watch: Watch) -> None:
    hub = watch.sandbox.hub
    first = watch.publish(watch.artifact, results="results-of-publish")
    assert first.code == 0, first.err
    refs = hub.refs(TARGET)
    assert refs[f"refs/tags/{watch.job.tag}"] == refs["refs/heads/main"]
    assert watch.result("results-of-publish").status == "published"
    assert f"{hub.endpoint}/{TARGET}/resolve/{watch.job.tag}/assets/error-by-layer.png" in first.summary

    second = watch.publish(watch.artifact, results="results-again")
    assert (second.code, watch.result("results-again").status) == (0, "unchanged")
    assert hub.refs(TARGET) == refs

    shutil.copytree(watch.runner.root / "results-of-publish", watch.runner.root / "results", dirs_exist_ok=True)
    report = watch.runner.step_here("actions", "report")
    assert report.code == 0, report.err
    assert "1 published" in report.summary

    again = watch.runner.step("actions", "quantize", "--job-id", watch.job.job_id, "--work", "elsewhere")
    assert (again.code, again.outputs["publish"]) == (0, "false")
    assert not (watch.runner.root / "elsewhere" / watch.job.job_id / "source").exists()

    hub.clear_requests()
    empty = watch.runner.step_here("actions", "plan", "--out", "plan-2")
    assert (empty.code, empty.outputs["quantize_count"], empty.outputs["refresh_count"]) == (0, "0", "0")
    asked = [request.path for request in hub.requests if "agent-harnesses" not in request.path]
    assert len(asked) <= 3
    assert sum("/resolve/" not in path for path in asked) <= 2


def test_what_needs_no_gpu_is_one_job(watch: Watch) -> None:
    """A changed small file upstream, then a publication that lost its tag."""
    hub, runner = watch.sandbox.hub, watch.runner
    write = {"HF_WRITE_TOKEN": hub.token()}
    hub.seed(MODEL, {"generation_config.json": '{"temperature": 0.25}'})
    for kind, reason in (("refresh", "generation_config.json"), ("finish", "no tag")):
        planned = runner.step_here("actions", "plan", "--out", f"plan-{kind}")
        assert (planned.outputs["quantize_count"], planned.outputs["refresh_count"]) == ("0", "1")
        [row] = json.loads(planned.outputs["refresh"])["include"]
        assert row["runs_on"] == ["ubuntu-latest"]
        assert reason in planned.summary.replace("\\", "")
        words = ("--plan", f"plan-{kind}", "--job-id", row["job_id"], "--results", f"results-{kind}")
        wrong = runner.step_here("actions", "quantize", *words)
        assert (wrong.code, f"is a {kind} job" in wrong.err) == (2, True)
        ended = runner.step("actions", "refresh", *words, **write)
        assert ended.code == 0, ended.err
        report = runner.step_here("actions", "report", "--plan", f"plan-{kind}", "--results", f"results-{kind}")
        assert "## 1 published" in report.summary
        tag = json.loads(hub.files(TARGET)["provenance.json"])["tag"]
        assert hub.refs(TARGET)[f"refs/tags/{tag}"] == hub.refs(TARGET)["refs/heads/main"]
        HfApi(endpoint=hub.endpoint, token=hub.token()).delete_tag(TARGET, tag=tag)
    assert json.loads(hub.files(TARGET)["generation_config.json"]) == {"temperature": 0.25}
