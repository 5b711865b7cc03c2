"""What the job report takes from the record of quantizing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.jobs import tasks
from bot.jobs.folder import JobDir
from bot.jobs.handover import has_chat_template
from bot.records import Report, no_progress
from tests.support.factories import expert_tokens, job, quantized, report


def test_the_report_carries_the_figures_of_experts_and_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring a mixture takes longer than this test should."""
    monkeypatch.setattr(tasks, "evaluate_folder", lambda *folders, **options: report(pictures=()))
    experts = tuple(expert_tokens(layer) for layer in range(2))
    jobdir = JobDir(tmp_path)
    jobdir.store(job())
    jobdir.store(quantized(experts=experts))
    made = tasks.evaluate_job(jobdir, no_progress)
    assert (made.experts, made.pictures) == (experts, (tasks.PICTURE,))
    assert jobdir.load(Report) == made
    assert (jobdir.card / tasks.PICTURE).is_file()


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
