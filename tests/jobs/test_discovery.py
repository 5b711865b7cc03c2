"""The plan of a watchlist with rules: which repos are found over HTTP, in how many requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import stamina

from bot.errors import WatchlistError
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.localhub import Fault, LocalHub
from bot.records import Plan, Watchlist
from bot.watch.watchlist import read
from tests.support.repos import as_bot, forget_requests, requests, source_files
from tests.support.workspace import WEIGHTS

TEXT = """\
publish_to: quantized
defaults: {calibration: {sources: [{builtin: prose}]}}
models: [lab/Listed]
discover:
  - {author: lab, match: New-*, mode: publish, priority: 3}
  - {author: lab}
"""


@pytest.fixture
def watchlist(hub: LocalHub, tmp_path: Path) -> Watchlist:
    for name in ("Listed", "New-A", "Other", "Mine"):
        hub.seed(f"lab/{name}", source_files(model__safetensors=WEIGHTS), private=name == "Mine")
    path = tmp_path / "watchlist.yaml"
    path.write_text(TEXT)
    forget_requests(hub)
    return read(path)


def plan(hub: LocalHub, watchlist: Watchlist, only: str | None = None) -> Plan:
    return pipeline.plan(as_bot(hub), watchlist.entries, watchlist.rules, only=only)


def test_what_a_rule_publishes_is_planned_like_a_model_and_the_rest_is_proposed(
    hub: LocalHub, watchlist: Watchlist
) -> None:
    found = plan(hub, watchlist)
    [new, by_hand] = found.jobs
    assert (new.entry.repo_id, new.entry.target, new.entry.priority) == ("lab/New-A", "quantized/New-A-awq", 3)
    assert (new.entry.found, by_hand.entry.found, by_hand.entry.repo_id) == (True, False, "lab/Listed")
    assert [item.repo.repo_id for item in found.proposals] == ["lab/Other"]
    assert {(item.repo_id, item.kind) for item in found.left_out} == {
        ("lab/Listed", "on the list"),
        ("lab/New-A", "taken by another rule"),
    }
    assert [item.path for item in requests(hub, "GET", "/api/models")].count("/api/models") == 1
    # What is only proposed is read no further.
    assert not requests(hub, "GET", "lab/Other")


def test_a_private_repo_that_our_token_sees_is_left_out(hub: LocalHub, watchlist: Watchlist) -> None:
    reader = Hub(hub.endpoint, hub.add_token("lab", role="read"))
    found = pipeline.plan(reader, watchlist.entries, watchlist.rules)
    assert [(item.repo_id, item.line) for item in found.left_out if item.kind == "private"] == [("lab/Mine", 6)]
    assert all(item.repo.repo_id != "lab/Mine" for item in found.proposals)


def test_a_renamed_repo_of_the_list_is_not_found_by_its_new_name(hub: LocalHub, watchlist: Watchlist) -> None:
    hub.rename("lab/Listed", "lab/New-B")
    found = plan(hub, watchlist)
    assert [job.entry.repo_id for job in found.jobs] == ["lab/New-A", "lab/Listed"]
    assert ("lab/New-B", "on the list") in {(item.repo_id, item.kind) for item in found.left_out}


def test_without_the_list_of_an_author_the_other_models_are_planned(hub: LocalHub, watchlist: Watchlist) -> None:
    hub.faults.add(Fault(path="/api/models$", status=500, times=None))
    with stamina.set_testing(True, attempts=1):
        found = plan(hub, watchlist)
    assert [job.entry.repo_id for job in found.jobs] == ["lab/Listed"]
    assert (found.proposals, found.unlisted) == ((), ("lab",))
    assert all("the Hub answers 500" in note for note in found.notes)


def test_one_model_that_a_rule_finds_can_be_planned_alone(hub: LocalHub, watchlist: Watchlist) -> None:
    rules_only = Watchlist(entries=(), rules=watchlist.rules)
    assert [job.entry.repo_id for job in plan(hub, rules_only, only="lab/New-A").jobs] == ["lab/New-A"]
    one = plan(hub, rules_only, only="lab/Other")
    assert (one.jobs, [item.repo.repo_id for item in one.proposals]) == ((), ["lab/Other"])
    hub.repo("lab/Other").update_settings(gated="auto")
    with pytest.raises(WatchlistError, match="Other is not on the watchlist, and no rule finds it: it is gated"):
        plan(hub, rules_only, only="lab/Other")


def test_targets_can_be_created_for_what_a_rule_publishes(hub: LocalHub, watchlist: Watchlist) -> None:
    found = pipeline.with_found(as_bot(hub), watchlist)
    assert [entry.target for entry in found] == ["quantized/Listed-awq", "quantized/New-A-awq"]
    forget_requests(hub)
    assert pipeline.with_found(as_bot(hub), Watchlist(entries=watchlist.entries)) == watchlist.entries
    assert not hub.requests
