"""What the job report takes from the record of quantizing."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bot.calibration import overlap
from bot.calibration.blocks import build_calibration_set
from bot.calibration.encoding import UNKNOWN_DATE
from bot.calibration.overlap import UsedText
from bot.calibration.sources import local_path
from bot.errors import QuantizationError
from bot.jobs import pipeline, tasks
from bot.jobs.folder import JobDir
from bot.jobs.handover import has_chat_template
from bot.records import (
    ERROR_BY_LAYER,
    KL_BY_POSITION,
    Evaluation,
    Job,
    Report,
    TextSource,
    from_json,
    no_progress,
    to_json,
)
from tests.support.factories import entry, expert_tokens, job, quantized, report, source_figures, upstream, weights
from tests.support.sandbox import ASSETS

MEASURED = report(pictures=(), sources=(source_figures("prose", kl_by_position=(0.3, 0.2)),), seq_len=512)


def test_the_report_carries_the_figures_of_experts_and_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring a mixture takes longer than this test should."""
    monkeypatch.setattr(tasks, "evaluate_folder", lambda *folders, **options: MEASURED)
    experts = tuple(expert_tokens(layer) for layer in range(2))
    jobdir = JobDir(tmp_path)
    jobdir.store(job())
    jobdir.store(quantized(experts=experts))
    overlap.save(UsedText(), jobdir.used_text)
    made = tasks.evaluate_job(jobdir, no_progress)
    assert (made.experts, made.pictures) == (experts, (KL_BY_POSITION, ERROR_BY_LAYER))
    assert jobdir.load(Report) == made
    assert all((jobdir.card / path).is_file() for path in made.pictures)


def test_what_calibration_used_is_drawn_again_where_it_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring takes longer than this test should."""
    seen: list[UsedText] = []

    def evaluate_folder(*folders: Path, used: UsedText, **options: object) -> Report:
        seen.append(used)
        return MEASURED

    monkeypatch.setattr(tasks, "evaluate_folder", evaluate_folder)
    jobdir = JobDir(tmp_path / "job")
    jobdir.store(job())
    jobdir.store(quantized())
    shutil.copytree(ASSETS / "qwen3-tiny", jobdir.source, ignore=shutil.ignore_patterns("*.safetensors"))
    build_calibration_set(
        job().entry.calibration,
        tokenizer_folder=jobdir.source,
        folder=tmp_path,
        trust_remote_code=False,
        used_text=tmp_path / "used.npz",
    )
    tasks.evaluate_job(jobdir, no_progress)
    first = overlap.load(tmp_path / "used.npz")
    assert len(first.runs) > 3000
    assert (seen[0].sketches, seen[0].runs.tolist()) == (first.sketches, first.runs.tolist())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Ten tokens."}, "own.jsonl: 6 tokens are too few to measure on; 32,768 are needed"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "own.jsonl holds chats, and the model has no chat"),
    ],
    ids=["too short", "chats"],
)
def test_text_that_cannot_be_measured_on_is_found_by_the_trial(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    """Which runs before the weights are pulled: the model's tokenizer says how many tokens a text has."""
    content = json.dumps(row).encode()
    text = TextSource(file="own.jsonl", sha256=hashlib.sha256(content).hexdigest())
    jobdir = JobDir(tmp_path / "job")
    jobdir.store(job(entry(evaluation=Evaluation(sources=(text,)))))
    ignored = shutil.ignore_patterns("*.safetensors", "chat_template.jinja")
    shutil.copytree(ASSETS / "qwen3-tiny", jobdir.source, ignore=ignored)
    jobdir.calibration.mkdir()
    (jobdir.calibration / str(local_path(text))).write_bytes(content)
    with pytest.raises(QuantizationError) as caught:
        tasks.try_job(jobdir)
    assert caught.value.message.startswith(said)


@pytest.mark.parametrize(
    ("last_modified", "date"), [("2025-06-30", datetime.date(2025, 6, 30)), (None, UNKNOWN_DATE)]
)
def test_calibration_takes_the_date_of_the_source_for_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_modified: str | None, date: datetime.date
) -> None:
    """Quantizing takes longer than this test should."""
    used: list[datetime.date] = []

    def quantize_folder(*folders: Path, date: datetime.date, **options: object) -> object:
        used.append(date)
        return quantized()

    monkeypatch.setattr(tasks, "quantize_folder", quantize_folder)
    jobdir = JobDir(tmp_path)
    jobdir.store(job(source=upstream(last_modified=last_modified)))
    jobdir.store(weights())
    tasks.quantize_job(jobdir, no_progress)
    assert used == [date]


def test_a_job_that_goes_on_keeps_the_date_that_it_began_with() -> None:
    begun = job(source=upstream(last_modified="2025-06-30"))
    later = replace(begun, reason="planned again", upstream=upstream(last_modified="2025-07-01"))
    assert pipeline._as_begun(later, begun) == replace(begun, reason="planned again")
    assert pipeline._as_begun(later, None) == later


def test_a_job_of_an_earlier_version_has_no_date() -> None:
    known = job(source=upstream(last_modified="2025-06-30"))
    without = to_json(known).replace('"last_modified": "2025-06-30"', '"unknown": 1')
    assert from_json(Job, without).upstream.last_modified is None


@pytest.mark.parametrize(
    ("path", "content", "found"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("chat_template.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", "{}", False),
        ("config.json", "{}", False),
    ],
)
def test_a_chat_template_is_found_in_each_of_its_places(
    tmp_path: Path, path: str, content: str, found: bool
) -> None:
    (tmp_path / path).write_text(content)
    assert has_chat_template(tmp_path) == found
