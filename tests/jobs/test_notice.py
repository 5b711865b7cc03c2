"""A notice on a published card: what it changes, what stays as it was, and when it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bot.card.model_card import with_notice
from bot.errors import EnvironmentProblem, PublishError
from bot.hub.republish import publish_notice
from bot.hub.session import Hub
from bot.hub.verify import verify
from bot.jobs import pipeline
from bot.jobs.lint import lint_repo
from bot.localhub import LocalHub
from bot.records import no_progress
from tests.support.linted import make_release, seed_source
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, as_bot
from tests.support.signers import with_key

TEXT = "The source was *withdrawn*."
LINE = "> **Notice of the publisher**: The source was \\*withdrawn\\*.\n"


@pytest.fixture
def release(hub: LocalHub, tmp_path: Path) -> Release:
    seed_source(hub)
    made = make_release(hub, tmp_path)
    made.publish()
    return made


def notice(hub: LocalHub, text: str, caller: Hub | None = None) -> str:
    return publish_notice(caller or as_bot(hub), TARGET, text, edited=with_notice)


def card(hub: LocalHub) -> str:
    return hub.files(TARGET)["README.md"].decode()


def problems(hub: LocalHub) -> list[str]:
    """What `verify` and `lint` find wrong, or cannot check, about the head."""
    found = [
        item.name
        for item in verify(as_bot(hub), TARGET, revision=None, progress=no_progress)
        if item.status == "failed"
    ]
    return found + [item.what for item in lint_repo(as_bot(hub), TARGET).findings if item.status != "ok"]


def test_a_notice_is_on_the_card_and_everything_still_fits(hub: LocalHub, release: Release) -> None:
    before, files = card(hub), hub.files(TARGET)
    tag = notice(hub, TEXT)
    assert tag.startswith(f"{release.job.tag}-noticed-")
    assert f"# Tiny-awq\n\n{LINE}\n[lab/Tiny]" in card(hub)
    assert card(hub).replace(f"{LINE}\n", "") == before
    changed = {path for path, content in hub.files(TARGET).items() if files.get(path) != content}
    assert changed == {"README.md", "provenance.json"}
    assert problems(hub) == []
    assert pipeline.plan(as_bot(hub), [release.job.entry]).skipped[0].reason == "up to date"


def test_a_notice_is_replaced_and_taken_away(hub: LocalHub, release: Release) -> None:
    before = card(hub)
    notice(hub, TEXT)
    notice(hub, "Another one.")
    assert "withdrawn" not in card(hub)
    assert problems(hub) == []
    notice(hub, "")
    assert card(hub) == before
    assert problems(hub) == []


def test_a_later_release_has_no_notice(hub: LocalHub, release: Release, tmp_path: Path) -> None:
    notice(hub, TEXT)
    hub.seed(SOURCE, {"config.json": hub.files(SOURCE)["config.json"] + b"\n"})
    make_release(hub, tmp_path).publish()
    assert "Notice" not in card(hub)
    assert problems(hub) == []


def test_a_signed_release_needs_its_key(hub: LocalHub, tmp_path: Path) -> None:
    seed_source(hub)
    ours = with_key()
    caller = replace(as_bot(hub), signing=ours.credential)
    make_release(hub, tmp_path, caller=caller, signed_by=ours.signer).publish()
    with pytest.raises(EnvironmentProblem, match="it is signed"):
        notice(hub, TEXT)
    tag = notice(hub, TEXT, caller)
    found = verify(as_bot(hub), TARGET, revision=tag, signer=ours.signer, progress=no_progress)
    assert {item.status for item in found} == {"ok"}


def test_a_card_that_was_changed_by_hand_is_left_alone(hub: LocalHub, release: Release) -> None:
    hub.seed(TARGET, {"README.md": card(hub) + "Words.\n"})
    with pytest.raises(PublishError, match="no complete release is on its head"):
        notice(hub, TEXT)


def test_what_is_no_card_of_ours_is_refused() -> None:
    for text in ("", "# Title\n\n", "---\na: 1\n---\n\nno title\n"):
        with pytest.raises(ValueError, match="not as awq-bot writes it"):
            with_notice(text, "", TEXT)


def test_the_plan_says_how_to_tell_readers_that_a_source_is_gone(hub: LocalHub, release: Release) -> None:
    gone = replace(release.job.entry, repo_id="lab/Gone")
    [skip] = pipeline.plan(as_bot(hub), [gone]).skipped
    assert f"`awq-bot notice {TARGET} --withdrawn`" in skip.hint
