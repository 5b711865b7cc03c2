"""`card` and `publish` on a job's folder, as a person runs them after a look at the artifact."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.calibration import overlap
from bot.calibration.blocks import build_calibration_set, tokens_sha256
from bot.calibration.evaluation import evaluation_tokens
from bot.errors import PublishError
from bot.jobs.folder import JobDir
from bot.jobs.handover import check_job_dir
from bot.jobs.pipeline import pull_originals
from bot.jobs.stages import JobContext, publish
from bot.records import Card, Provenance, WorkflowRun, from_json, no_progress
from tests.support.factories import workflow_run
from tests.support.repos import as_bot
from tests.support.sandbox import Sandbox, SandboxBefore
from tests.support.small_sandbox import TARGET, assert_published
from tests.support.tampering import render_card_again

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ (INFO|DEBUG) \S.*")


def test_a_deleted_card_is_written_again_byte_for_byte(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("card")
    [job] = sandbox.jobs
    card = job / "card" / "README.md"
    before = card.read_bytes()
    card.unlink()
    result = sandbox.call("card", "--job", str(job))
    assert (result.returncode, result.stdout.strip()) == (0, str(card)), result.stderr
    assert card.read_bytes() == before


def handed_over(sandbox: Sandbox, originals: Path) -> JobDir:
    """A job's folder as another machine gets it."""
    jobdir = JobDir(sandbox.jobs[0])
    # What only the machine that made it has.
    for name in ("publication.json", "result.json"):
        (jobdir.path / name).unlink(missing_ok=True)
    jobdir.clear_inputs()
    pull_originals(as_bot(sandbox.hub), jobdir.job, originals)
    return jobdir


def test_a_job_of_another_run_of_the_repository_is_taken_over_and_names_both(
    sandbox_before: SandboxBefore, tmp_path: Path
) -> None:
    """It goes on where an earlier run was stopped. The card names the run that built it."""
    sandbox = sandbox_before()
    jobdir, built = handed_over(sandbox, tmp_path), workflow_run()
    publishing = replace(built, run_id=7002, url=built.url.replace("7001", "7002"))
    render_card_again(jobdir, built)
    check_job_dir(jobdir.job, jobdir.path, tmp_path, publishing)
    card = (jobdir.card / "README.md").read_text()
    assert f"[run 7001, attempt 2]({built.url}) of `someone/bot` at commit `abababab`" in card
    context = JobContext(
        hub=replace(as_bot(sandbox.hub), run=publishing), work=tmp_path, files=tmp_path, progress=no_progress
    )
    publish(context, jobdir)
    made = from_json(Provenance, sandbox.hub.files(TARGET)["provenance.json"])
    assert (made.built_by, made.published_by) == (built, publishing)


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        (workflow_run(url="https://evil.example/"), "its provenance cannot be trusted: built_by.url"),
        (
            workflow_run(
                repository="mallory/bot",
                workflow_ref="mallory/bot/.github/workflows/x.yml@refs/heads/main",
                url="https://github.com/mallory/bot/actions/runs/7001/attempts/2",
            ),
            "it claims to be built in mallory/bot",
        ),
    ],
)
def test_a_job_that_claims_another_run_is_refused(
    sandbox_before: SandboxBefore, tmp_path: Path, claimed: WorkflowRun, said: str
) -> None:
    jobdir = handed_over(sandbox_before(), tmp_path)
    render_card_again(jobdir, claimed)
    with pytest.raises(PublishError, match=re.escape(said)):
        check_job_dir(jobdir.job, jobdir.path, tmp_path, workflow_run())


def test_the_tokens_of_every_figure_are_made_again_from_the_provenance(
    sandbox_before: SandboxBefore, tmp_path: Path
) -> None:
    """As anybody can: with the source and the texts at the commits and hashes that it names."""
    jobdir = JobDir(sandbox_before().jobs[0])
    published = from_json(Provenance, (jobdir.card / "provenance.json").read_bytes())
    texts: dict[str, Any] = {"tokenizer_folder": jobdir.source, "folder": jobdir.calibration}
    texts["trust_remote_code"] = False
    used = tmp_path / "used.npz"
    _, calibrated = build_calibration_set(published.calibration_asked, used_text=used, **texts)
    assert calibrated == published.calibration
    tokens, measured = evaluation_tokens(published.evaluation_asked, used=overlap.load(used), **texts)
    assert published.report.text_sha256 == tokens_sha256(tokens)
    parts = torch.split(tokens, [text.blocks for text in measured])
    assert [source.sha256 for source in published.report.sources] == [tokens_sha256(part) for part in parts]
    assert (len(parts), published.report.seq_len) == (2, tokens.shape[1])


def test_a_job_is_published_once_and_logged_with_times(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before()
    [job] = sandbox.jobs
    dry = sandbox.call("publish", "--job", str(job), "--dry-run")
    recorded = [file["path"] for file in json.loads((job / "card.json").read_text())["record"]["files"]]
    assert [line.split()[-1] for line in dry.stdout.splitlines()] == recorded
    assert {"README.md", "config.json", "model.safetensors", "provenance.json"} <= {*recorded}
    assert not [request for request in sandbox.hub.requests if request.method != "GET"]

    first = sandbox.call("--log-file", "bot.log", "publish", "--job", str(job))
    tag = assert_published(sandbox, first)["tag"]
    assert first.stdout.strip() == f"{sandbox.hub.endpoint}/{TARGET} at {tag}"
    head = sandbox.hub.history(TARGET)[0].sha
    lines = (sandbox.root / "bot.log").read_text().splitlines()
    assert lines
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []

    again = sandbox.call("publish", "--job", str(job))
    assert (again.returncode, again.stdout.strip().endswith("(was there already)")) == (0, True)
    assert sandbox.hub.history(TARGET)[0].sha == head


def test_an_artifact_from_another_machine_has_the_edits_and_the_licence_that_were_planned(
    sandbox_before: SandboxBefore, tmp_path: Path
) -> None:
    sandbox = sandbox_before()
    originals = tmp_path / "originals"
    jobdir = handed_over(sandbox, originals)
    check_job_dir(jobdir.job, jobdir.path, originals)
    assert "auto_map" in json.loads((originals / "config.json").read_bytes())
    assert "auto_map" not in json.loads((jobdir.quantized / "config.json").read_bytes())
    assert not (jobdir.quantized / "modeling_own.py").exists()
    assert "license_link: docs/Agreement.md\n" in (jobdir.card / "README.md").read_text()

    agreement = jobdir.quantized / "docs/Agreement.md"
    assert agreement.read_text() == "Do no harm.\n"
    agreement.unlink()
    files = jobdir.load(Card)
    assert files is not None
    jobdir.store(Card(files=tuple(file for file in files.files if file.path != "docs/Agreement.md")))
    with pytest.raises(PublishError, match=r"upstream's 'docs/Agreement\.md' is missing"):
        check_job_dir(jobdir.job, jobdir.path, originals)
