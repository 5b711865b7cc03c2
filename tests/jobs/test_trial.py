"""What only transformers can judge is judged before a release's weights are pulled."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import save

from bot.errors import UpstreamError
from bot.jobs import pipeline, stages
from bot.jobs.folder import JobDir
from bot.jobs.stages import JobContext
from bot.localhub import LocalHub
from bot.records import no_progress
from bot.watch import watchlist as watchlists
from tests.support.repos import as_bot
from tests.support.small_sandbox import CONFIG, SOURCE, WEIGHTS, small_model, small_weights
from tests.support.watch import BUILTIN_TEXT

INCOMPLETE = {name: tensor for name, tensor in small_weights(CONFIG).items() if name != "model.norm.weight"}


def test_no_weights_are_pulled_for_what_cannot_be_done(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine without transformers, where plans are usually made.
    monkeypatch.setattr(pipeline, "_with_layers", lambda entry, details: details)
    hub.seed(SOURCE, small_model(model__safetensors=save(INCOMPLETE)))
    (tmp_path / "watchlist.yaml").write_text(f"publish_to: quantized\n{BUILTIN_TEXT}models:\n  - {SOURCE}\n")
    [job] = pipeline.plan(as_bot(hub), watchlists.load(tmp_path / "watchlist.yaml")).jobs
    jobdir = JobDir(tmp_path / "work" / job.job_id)
    jobdir.store(job)
    context = JobContext(hub=as_bot(hub), work=tmp_path / "work", files=tmp_path, progress=no_progress)
    with pytest.raises(UpstreamError, match=r"model\.norm\.weight"):
        stages.pull(context, jobdir)
    assert (jobdir.source / "config.json").is_file()
    assert not (jobdir.source / WEIGHTS).exists()
