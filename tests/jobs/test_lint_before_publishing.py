"""The publisher checks the card before it uploads: what the artifact does not bear out never reaches the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.card.model_card import render_card
from bot.card.provenance import refreshed, with_file
from bot.errors import PublishError
from bot.files import describe_file
from bot.hub.session import Hub
from bot.jobs.folder import JobDir
from bot.jobs.lint import lint_repo
from bot.jobs.stages import JobContext, publish
from bot.localhub import LocalHub
from bot.records import Card, Job, JobKind, Provenance, from_json, no_progress, to_json
from tests.support.linted import edit, job_of, make_release
from tests.support.repos import SOURCE, TARGET, as_bot, writes


def context(hub: LocalHub, folder: Path) -> JobContext:
    return JobContext(hub=as_bot(hub), work=folder, files=folder, progress=no_progress)


def job_dir(hub: LocalHub, folder: Path) -> JobDir:
    """A job that is done but for publishing."""
    release = make_release(hub, folder)
    jobdir = JobDir(folder / release.job.job_id)
    jobdir.store(release.job)
    jobdir.store(Card(files=release.artifact.files))
    return jobdir


def rewritten(jobdir: JobDir, card: str, made: Provenance) -> None:
    """Both files replaced, and the records that list their hashes: what a mistake of ours would look like."""
    (jobdir.card / "README.md").write_text(card)
    files = tuple(file for file in made.files if file.path != "README.md")
    made = with_file(replace(made, files=files), describe_file(jobdir.card, "README.md"))
    (jobdir.card / "provenance.json").write_text(to_json(made))
    jobdir.store(Card(files=(*made.files, describe_file(jobdir.card, "provenance.json"))))


def made_in(jobdir: JobDir) -> Provenance:
    return from_json(Provenance, (jobdir.card / "provenance.json").read_bytes())


def test_a_card_that_is_borne_out_is_published(hub: LocalHub, tmp_path: Path) -> None:
    publish(context(hub, tmp_path), job_dir(hub, tmp_path))
    assert [item for item in lint_repo(Hub(hub.endpoint), TARGET).findings if item.status != "ok"] == []


def with_report(**fields: Any) -> Any:
    return lambda made: replace(made, report=replace(made.report, **fields))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            with_report(size_quantized_bytes=1_000_000),
            "provenance.json: size of the weights: 1.0 MB, expected 1.9 MB",
        ),
        (with_report(bits_per_weight=3.0), "bits per weight: 3.000, expected 4.156"),
        (lambda made: replace(made, artifact_dtype="bfloat16"), "not quantized: bfloat16, expected float16"),
        (lambda made: replace(made, tensor_parallel=(1, 2, 4)), "tensor parallel sizes: 1, 2, 4, expected 1, 2"),
        (lambda made: replace(made, kv_cache=replace(made.kv_cache, contexts=(4096,))), "KV cache"),
    ],
)
def test_records_that_the_weights_do_not_bear_out_end_the_job_with_7(
    hub: LocalHub, tmp_path: Path, change: Any, said: str
) -> None:
    jobdir = job_dir(hub, tmp_path)
    made = change(made_in(jobdir))
    rewritten(jobdir, render_card(jobdir.job, made, chat=False), made)
    with pytest.raises(PublishError) as caught:
        publish(context(hub, tmp_path), jobdir)
    assert caught.value.exit_code == 7
    assert caught.value.message.startswith(f"{TARGET}: the artifact does not bear out its card: ")
    assert said in caught.value.message
    assert caught.value.hint
    assert not hub.store.exists(TARGET)
    assert writes(hub) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("| 93.5 % |", "| 99.5 % |", "same most likely next token: 99.5 %, expected 93.5 %"),
        ("vllm serve quantized/Tiny-awq", "vllm serve other/Tiny-awq", "command: vllm serve other/Tiny-awq"),
        ("license: apache-2.0", "license: mit", "README.md:2: license: mit, expected apache-2.0"),
    ],
)
def test_a_card_that_does_not_follow_from_its_records_ends_the_job_with_7(
    hub: LocalHub, tmp_path: Path, before: str, after: str, said: str
) -> None:
    jobdir = job_dir(hub, tmp_path)
    card = (jobdir.card / "README.md").read_text()
    assert before in card
    rewritten(jobdir, card.replace(before, after, 1), made_in(jobdir))
    with pytest.raises(PublishError, match=r"README\.md:\d+: ") as caught:
        publish(context(hub, tmp_path), jobdir)
    assert said in caught.value.message
    assert not hub.store.exists(TARGET)


def refresh_job(hub: LocalHub, folder: Path) -> tuple[Job, JobDir]:
    """After a change of a small file, as `refresh` leaves the job's folder."""
    before = make_release(hub, folder).state.provenance
    assert before is not None
    edit(hub, SOURCE, "generation_config.json", b'{"top_k": 20}')
    job = replace(job_of(hub), kind=JobKind.REFRESH)
    jobdir = JobDir(folder / f"{job.job_id}-refresh")
    jobdir.store(job)
    jobdir.quantized.mkdir(parents=True)
    jobdir.card.mkdir()
    (jobdir.quantized / "generation_config.json").write_bytes(b'{"top_k": 20}')
    kept = [file for file in before.files if file.path not in ("README.md", "generation_config.json")]
    small = describe_file(jobdir.quantized, "generation_config.json")
    made = refreshed(before, job, tool="awq-bot 0.1.0", files=(*kept, small))
    rewritten(jobdir, render_card(job, made, chat=False), made)
    return job, jobdir


def test_a_refresh_is_checked_against_the_published_weights(hub: LocalHub, tmp_path: Path) -> None:
    publish(context(hub, tmp_path), job_dir(hub, tmp_path / "first"))
    job, jobdir = refresh_job(hub, tmp_path)
    publish(context(hub, tmp_path), jobdir)
    result = lint_repo(Hub(hub.endpoint), TARGET)
    assert result.tag == job.tag
    assert [item for item in result.findings if item.status != "ok"] == []


def test_a_refresh_whose_figures_are_not_those_of_the_weights_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    first = publish(context(hub, tmp_path), job_dir(hub, tmp_path / "first"))
    _, jobdir = refresh_job(hub, tmp_path)
    made = with_report(size_quantized_bytes=5_000_000)(made_in(jobdir))
    rewritten(jobdir, render_card(jobdir.job, made, chat=False), made)
    with pytest.raises(PublishError, match=r"size of the weights: 5\.0 MB, expected 1\.9 MB"):
        publish(context(hub, tmp_path), jobdir)
    assert lint_repo(Hub(hub.endpoint), TARGET).tag == first.tag
