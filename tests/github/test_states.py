"""From plan, history and issues to the state of each model, and what everyone may see of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bot.github.states import Known, model_states, public_states
from bot.records import (
    Attempts,
    AuthorListing,
    ListedRepo,
    ModelState,
    ModelStatus,
    Plan,
    Proposal,
    ReleaseHistory,
    Skip,
)
from tests.support.factories import entry, job, listed
from tests.support.status import model, release

TARGET = "quantized/Tiny-awq"
NOTHING = Known()


def plan(**fields: Any) -> Plan:
    return replace(Plan(jobs=(), skipped=()), **fields)


def of_skip(known: Known = NOTHING, hold: str | None = None, **fields: Any) -> ModelStatus:
    skip = replace(Skip(entry=entry(hold=hold), reason="up to date"), **fields)
    [found] = model_states(plan(skipped=(skip,)), known)
    return found


def tried(**fields: Any) -> Attempts:
    standard = Attempts(
        target=TARGET, content=job().attempt_digest, count=2, next_try="2026-11-30T02:50:00Z", issue=7
    )
    return replace(standard, **fields)


@pytest.mark.parametrize(
    ("skip", "state"),
    [
        ({}, ModelState.PUBLISHED),
        ({"reason": "on hold: later", "hold": "later", "blocked": True}, ModelState.HELD),
        ({"reason": "gated: our token has no access", "exit_code": 3}, ModelState.REFUSED),
        ({"reason": "upload incomplete: 2 shards are missing", "exit_code": 3}, ModelState.WAITING),
        ({"reason": "the Hub answers 503", "exit_code": 8}, ModelState.WAITING),
        ({"reason": "settling: its weights changed 5 min ago", "blocked": True}, ModelState.WAITING),
    ],
)
def test_why_there_is_no_job_is_the_state(skip: dict[str, Any], state: ModelState) -> None:
    found = of_skip(**skip)
    assert (found.state, found.reason) == (state, skip.get("reason", "up to date"))


def test_a_job_is_planned_and_a_deferred_one_comes_after_others() -> None:
    [found] = model_states(plan(jobs=(job(),)), NOTHING)
    assert (found.state, found.reason) == (ModelState.PLANNED, "first release")
    [found] = model_states(plan(deferred=(job(),)), NOTHING)
    assert (found.state, found.reason) == (ModelState.PLANNED, "first release; after other models")


@pytest.mark.parametrize(
    ("attempts", "reason", "next_attempt"),
    [
        ({}, "failed twice", "2026-11-30T02:50:00Z"),
        ({"count": 1}, "failed once", "2026-11-30T02:50:00Z"),
        (
            {"count": 4, "next_try": None, "waits_for_person": True},
            "failed 4 times, no more automatic retries",
            None,
        ),
    ],
)
def test_what_failed_waits_for_its_next_attempt(
    attempts: dict[str, object], reason: str, next_attempt: str | None
) -> None:
    known = Known(attempts={TARGET: tried(**attempts)}, issues_url="https://github.com/a/b/issues")
    [found] = model_states(plan(jobs=(job(),)), known)
    assert (found.state, found.reason, found.next_attempt) == (ModelState.WAITING, reason, next_attempt)
    assert (found.issue, found.issue_url) == (7, "https://github.com/a/b/issues/7")


def test_attempts_at_other_content_do_not_count() -> None:
    [found] = model_states(plan(jobs=(job(),)), Known(attempts={TARGET: tried(content="0" * 64)}))
    assert found.state is ModelState.PLANNED


def test_what_is_published_is_shown_in_every_state() -> None:
    history = ReleaseHistory(repo_id=TARGET, releases=(release(),), whole=False, problem="the log breaks")
    known = Known(histories={TARGET: history})
    [planned] = model_states(plan(jobs=(job(),)), known)
    for found in (planned, of_skip(known, hold="later", reason="on hold: later")):
        assert (found.releases, found.older, found.note) == ((release(),), True, "the log breaks")


def test_proposals_are_listed_with_their_facts_in_the_order_of_names() -> None:
    proposal = Proposal(repo=listed("Abc/New"), author="Abc", line=9, target="quantized/New-awq")
    found = model_states(plan(jobs=(job(),), proposals=(proposal,)), NOTHING)
    assert [(item.source, item.state) for item in found] == [
        ("Abc/New", ModelState.PROPOSED),
        ("lab/Tiny", ModelState.PLANNED),
    ]
    assert "8.2B parameters" in found[0].reason


# --- what everyone may see ------------------------------------------------------------------------------------


def listing(**private: bool) -> tuple[AuthorListing, ...]:
    """source, target: whether they are private; one that is not named is not listed."""
    names = {"source": "lab/Tiny", "target": TARGET}
    repos = tuple(
        ListedRepo(repo_id=names[key].upper(), created="", private=is_so) for key, is_so in private.items()
    )
    return (AuthorListing(author="all", repos=repos),)


@pytest.mark.parametrize(
    ("private", "is_shown"),
    [
        ({"source": False, "target": False}, True),
        ({"source": False}, True),  # not published yet
        ({"target": False}, True),  # the source was renamed
        ({"source": True, "target": False}, False),
        ({"source": False, "target": True}, False),
        ({"source": True}, False),
        ({}, False),  # missing, or private without access
    ],
)
def test_only_what_is_known_to_be_public_is_shown(private: dict[str, bool], is_shown: bool) -> None:
    assert (public_states([model()], listing(**private), []) != ()) is is_shown


def test_what_the_watchlist_wants_private_is_not_shown() -> None:
    assert public_states([model()], listing(source=False, target=False), [TARGET]) == ()


def test_a_hidden_name_is_not_in_what_is_said_of_others() -> None:
    hidden = model(source="secret/Next", target="quantized/Next-awq")
    said = model(state=ModelState.REFUSED, reason="the same repo as secret/Next on line 3", hint="secret/Next")
    [found] = public_states([hidden, said], listing(source=False), [])
    assert (found.reason, found.hint) == ("the same repo as another model on line 3", "another model")
