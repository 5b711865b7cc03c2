"""Rules and listings in; what is found, and why the rest is not, out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bot.records import AuthorListing, DiscoverRule, Discovery, Job, JobKind, ListedRepo
from bot.watch.discovery import authors_to_list, discover, proposal_facts
from bot.watch.release import MAX_FOUND_RELEASES, make_plan
from tests.support.factories import entry, job, listed, rule


def search(*rules: DiscoverRule, repos: tuple[ListedRepo, ...] = (listed(),), **more: Any) -> Discovery:
    """The rules on these repos of `lab`."""
    return discover(rules, [AuthorListing(author="lab", repos=repos)], more.pop("entries", ()), **more)


def test_a_rule_proposes_what_it_finds_unless_it_publishes() -> None:
    found = search(rule(settings=("priority: 1",)))
    [proposal] = found.proposals
    assert (proposal.repo.repo_id, proposal.target, proposal.line) == ("lab/New", "quantized/New-awq", 9)
    assert proposal.settings == ("priority: 1",)
    assert [*found.entries, *found.left_out, *found.unlisted] == []
    assert found.notes == ("discover lab (line 9): 1 found",)
    assert proposal_facts(proposal) == (
        "Qwen3ForCausalLM, 8.2B parameters, created 2026-11-20, 1,000 downloads, mit; rule on line 9"
    )
    published = search(rule(mode="publish", entry=entry(repo_id="", target="", priority=7, found=True)))
    [made] = published.entries
    assert published.proposals == ()
    assert made == entry(repo_id="lab/New", target="quantized/New-awq", priority=7, found=True)


@pytest.mark.parametrize(
    ("repo", "asked", "kind", "reason"),
    [
        ({}, {"exclude": ("*-Base", "new")}, "excluded", "its name"),
        ({"library": "peft"}, {}, "adapter", "adapter"),
        ({"tags": ("safetensors", "base_model:adapter:lab/Base")}, {}, "adapter", "adapter"),
        ({"tags": ("safetensors", "merge")}, {}, "merge", "merge"),
        ({"tags": ("safetensors", "base_model:merge:lab/Base")}, {}, "merge", "merge"),
        ({"quantized": "fp8"}, {}, "quantized", "already (fp8)"),
        ({"quantized": "base_model:quantized:lab/Base"}, {}, "quantized", "(quantized:lab/Base)"),
        ({"tags": ("gguf",)}, {}, "GGUF only", "GGUF"),
        ({"tags": ("transformers",)}, {}, "no weights", "no safetensors"),
        ({"model_type": None}, {}, "unsupported", "no config.json"),
        ({"architectures": ("BertModel",)}, {}, "unsupported", "BertModel is not a causal language model"),
        ({"model_type": "qwen99"}, {}, "unsupported", "'qwen99': this version's table does not know it"),
        ({"model_type": "mamba"}, {}, "unsupported", "'mamba': "),
        ({}, {"since": "2026-11-21"}, "too old", "created 2026-11-20, before 2026-11-21"),
        ({"created": ""}, {"since": "2026-11-21"}, "too old", "at an unknown time"),
        ({}, {"min_downloads": 1001}, "too few downloads", "1,000 downloads, fewer than 1,001"),
        ({}, {"max_parameters": 8 * 10**9}, "too many parameters", "8.2B parameters, more than 8.0B"),
        ({"parameters": None}, {"max_parameters": 8 * 10**9}, "unknown size", "does not say"),
        ({}, {"architectures": ("Llama*", "gemma3")}, "other architecture", "Qwen3ForCausalLM, qwen3"),
        ({}, {"tags": ("transformers", "chat")}, "without tag", "no tag chat"),
        ({"gated": True}, {}, "gated", "`private: true`"),
        ({"private": True, "gated": True}, {}, "private", "list it under `models`"),
        ({}, {"publish_to": "Lab"}, "of the target's owner", "belongs to Lab"),
        ({}, {"publish_to": "q" * 90}, "name too long", "more than 96 characters"),
    ],
)
def test_each_repo_that_is_left_out_has_its_reason(
    repo: dict[str, Any], asked: dict[str, Any], kind: str, reason: str
) -> None:
    found = search(rule(**asked), repos=(listed(**repo),))
    [left_out] = found.left_out
    assert (left_out.repo_id, left_out.line, left_out.kind) == ("lab/New", 9, kind)
    assert reason in left_out.reason
    assert found.proposals == ()
    assert found.notes == (f"discover lab (line 9): nothing found, 1 {kind}",)


@pytest.mark.parametrize(
    "asked",
    [
        {"since": "2026-11-20"},
        {"min_downloads": 1000},
        {"max_parameters": 8_200_000_000},
        {"architectures": ("qwen3",)},
        {"architectures": ("*ForCausalLM",)},
        {"tags": ("safetensors", "license:mit")},
        {"match": ("other", "NE*")},
        {"exclude": ("*-Base",)},
    ],
)
def test_a_repo_at_the_edge_of_a_filter_is_taken(asked: dict[str, Any]) -> None:
    assert [item.repo.repo_id for item in search(rule(**asked)).proposals] == ["lab/New"]


@pytest.mark.parametrize("closed", [{"gated": True}, {"private": True}])
def test_a_closed_repo_is_taken_only_to_be_published_privately(closed: dict[str, Any]) -> None:
    private = entry(repo_id="", target="", private=True)
    found = search(rule(mode="publish", entry=private), repos=(listed(**closed),))
    assert [item.private for item in found.entries] == [True]


def test_models_of_the_list_are_not_found_again_by_any_of_their_names() -> None:
    repos = (listed("lab/New"), listed("lab/Renamed"), listed("lab/Third"))
    entries, names = [entry(repo_id="LAB/new", line=4)], ["lab/new", "lab/renamed"]
    found = search(rule(), repos=repos, entries=entries, names=names)
    assert [item.repo.repo_id for item in found.proposals] == ["lab/Third"]
    assert [(item.kind, item.reason) for item in found.left_out] == [
        ("on the list", "it is on line 4"),
        ("on the list", "it is on the list by an earlier name"),
    ]


def test_a_target_is_given_to_one_repo_only() -> None:
    listings = [
        AuthorListing(author="lab", repos=(listed("lab/New"), listed("lab/Old"))),
        AuthorListing(author="other", repos=(listed("other/NEW"),)),
    ]
    on_list = [entry(repo_id="x/Old", target="Quantized/old-AWQ")]
    found = discover([rule(), rule(author="other", line=12)], listings, on_list)
    assert [item.repo.repo_id for item in found.proposals] == ["lab/New"]
    reasons = [(item.repo_id, item.kind, item.reason) for item in found.left_out]
    assert [(name, kind) for name, kind, _ in reasons] == [
        ("lab/Old", "target taken"),
        ("other/NEW", "target taken"),
    ]
    assert "that of x/Old" in reasons[0][2]
    assert "that of lab/New" in reasons[1][2]


def test_the_first_rule_that_takes_a_repo_gets_it_and_the_others_say_so() -> None:
    small, all_of_them = rule(max_parameters=10**9, mode="publish"), rule(author="Lab", line=12)
    repos = (listed("lab/Small", parameters=10**8), listed("lab/Large"))
    found = search(small, all_of_them, rule(line=15), repos=repos)
    assert [item.repo_id for item in found.entries] == ["lab/Small"]
    assert [(item.repo.repo_id, item.line) for item in found.proposals] == [("lab/Large", 12)]
    assert found.notes == (
        "discover lab (line 9): 1 found, 1 too many parameters",
        "discover Lab (line 12): 1 found, 1 taken by another rule",
        "discover lab (line 15): nothing found, 2 taken by another rule",
    )
    assert found.left_out[0].reason == "the rule on line 9 takes it"


def test_beyond_its_limit_a_rule_takes_the_newest_and_says_how_many_are_left() -> None:
    days = (3, 9, 1, 7)
    repos = tuple(listed(f"lab/N{day}", created=f"2026-11-0{day}T08:00:00Z") for day in days)
    found = search(rule(limit=2), repos=repos)
    assert [item.repo.repo_id for item in found.proposals] == ["lab/N9", "lab/N7"]
    assert found.notes == ("discover lab (line 9): 2 found, 2 over the limit",)


def test_two_rules_on_one_line_are_two_rules() -> None:
    found = search(rule(match=("New",)), rule(match=("Other",)))
    assert found.notes == ("discover lab (line 9): 1 found", "discover lab (line 9): no repo's name matches Other")


def test_what_cannot_be_listed_is_said_and_finds_nothing() -> None:
    listings = [
        AuthorListing(author="Lab", problem="the Hub answers 500"),
        AuthorListing(author="unknown"),
        AuthorListing(author="some", repos=(listed("some/New"),)),
    ]
    held = rule(author="held", entry=entry(hold="not yet", line=9))
    rules = [rule(), rule(author="unknown", line=12), rule(author="some", match=("A*", "B*"), line=15), held]
    found = discover(rules, listings, ())
    assert found == Discovery(
        unlisted=("Lab",),
        notes=(
            "discover lab (line 9): its repos could not be listed, so that nothing is found this time: "
            "the Hub answers 500",
            "discover unknown (line 12): no such account on the Hub, or our token can see none of its models",
            "discover some (line 15): no repo's name matches A* or B*",
            "discover held (line 9): on hold: not yet",
        ),
    )


def test_an_author_is_not_listed_for_rules_on_hold() -> None:
    assert authors_to_list([rule(), rule(author="held", entry=entry(hold="not yet"))]) == ("lab",)


def test_a_plan_starts_few_releases_of_what_rules_found() -> None:
    def made(name: str, *, found: bool, kind: JobKind = JobKind.RELEASE) -> Job:
        return job(entry(found=found), job_id=name, kind=kind)

    found = [made(f"found-{number}", found=True) for number in range(MAX_FOUND_RELEASES + 2)]
    others = [made("by hand", found=False), made("refresh", found=True, kind=JobKind.REFRESH)]
    plan = make_plan([*found, *others])
    names = [item.job_id for item in found]
    assert {item.job_id for item in plan.jobs} == {*names[:MAX_FOUND_RELEASES], "by hand", "refresh"}
    assert [item.job_id for item in plan.deferred] == names[MAX_FOUND_RELEASES:]
    limited = make_plan([*found, *others], max_jobs=2)
    assert len(limited.jobs) + len(limited.deferred) == len(found) + len(others)
    again = make_plan([replace(item, reason="again") for item in (*plan.jobs, *plan.deferred)])
    assert [item.job_id for item in again.deferred] == names[MAX_FOUND_RELEASES:]
