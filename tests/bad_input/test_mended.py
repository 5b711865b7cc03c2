"""What a run refuses is published once its cause is mended, in the same job folder or in a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bot.calibration.evaluation import evaluation_tokens
from bot.hub.session import Hub
from bot.jobs import pipeline, stages, tasks
from bot.jobs.stages import JobContext
from bot.localhub import LocalHub
from bot.records import Evaluation, Job, JobResult, Status, TextSource, no_progress
from bot.watch import watchlist as watchlists
from tests.bad_input.case import Case, Place, Refused
from tests.bad_input.cases import CASES
from tests.bad_input.places import TEXT, UNSEEN, child_here
from tests.bad_input.plans import files_of, layers_here, repo_of
from tests.support.small_sandbox import small_model

_RUN = (Place.PULL, Place.TOKENIZER, Place.LAYERS)
# All of them take minutes together.
_QUICK = "merge-longer-than-any-word"
# A job of its own takes what these change in the watchlist or in the environment.
REFUSED = [
    case
    for case in CASES
    if case.place in _RUN and isinstance(case.right, Refused) and not (case.rows or case.entry or case.prepare)
]


@dataclass(frozen=True, slots=True)
class _Run:
    """A Hub with one watched model, and the folder of its jobs."""

    hub: Hub
    local: LocalHub
    root: Path

    def planned(self) -> tuple[Job, ...]:
        return pipeline.plan(self.hub, watchlists.load(self.root / "watchlist.yaml")).jobs

    def job(self, job: Job) -> JobResult:
        work = self.root / "work"
        return pipeline.run_job(JobContext(hub=self.hub, work=work, files=self.root, progress=no_progress), job)


@contextmanager
def _opened(case: Case, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Run]:
    monkeypatch.setattr(pipeline, "layers_of_model", layers_here)
    monkeypatch.setattr(stages, "run_child", child_here)
    monkeypatch.setattr("bot.hub.session.ATTEMPTS", 2)
    (root / "notes.txt").write_text(TEXT)
    # Built-in text takes seconds to read, and how well it is measured is not asked here.
    (root / "unseen.txt").write_text(UNSEEN)
    unseen = Evaluation(sources=(TextSource(file=str(root / "unseen.txt")),))
    monkeypatch.setattr(tasks, "evaluation_tokens", lambda asked, **options: evaluation_tokens(unseen, **options))
    model = {
        "repo_id": repo_of(case),
        "calibration": {"samples": 16, "seq_len": 64, "sources": [{"file": "notes.txt"}]},
        "gate": {"max_kl": 100, "min_top1": 0, "max_perplexity_ratio": 100},
    }
    (root / "watchlist.yaml").write_text(yaml.safe_dump({"publish_to": "quantized", "models": [model]}))
    with LocalHub(root / "hub") as local:
        local.seed(repo_of(case), files_of(case))
        yield _Run(Hub(local.endpoint, local.token(), local.token()), local, root)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.name == _QUICK else pytest.mark.slow) for case in REFUSED],
    ids=lambda case: f"{case.place.value}-{case.kind.name.lower()}-{case.name}",
)
def test_a_job_that_was_refused_is_published_once_its_cause_is_mended(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"quantized/{case.name}-awq"
    with _opened(case, tmp_path, monkeypatch) as run:
        for job in run.planned():  # the plan may refuse it already
            for fault in case.faults:
                run.local.faults.add(fault)
            result = run.job(job)
            assert result.status is Status.FAILED
            assert result.error is not None
            run.local.faults.clear()
        assert not run.local.store.exists(target)
        if not case.faults:
            run.local.seed(repo_of(case), small_model(), replace_all=True)
        [mended] = run.planned()
        result = run.job(mended)
        assert result.status is Status.PUBLISHED, result.message
        refs = run.local.refs(target)
        assert refs[f"refs/tags/{mended.tag}"] == refs["refs/heads/main"]
    assert (tmp_path / "work" / mended.job_id / "publication.json").is_file()
