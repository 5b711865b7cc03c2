"""What the list of an author's repos shows, in how many requests, and what is made of a list that breaks off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import stamina

from bot.hub import listings
from bot.hub.listings import read_authors
from bot.hub.session import Hub
from bot.localhub import Fault, Limits, LocalHub
from bot.records import Head, ListedRepo
from tests.support.factories import CONFIG
from tests.support.repos import as_bot, safetensors, source_files

QUANTIZED = {"quant_method": "awq", "bits": 4, "group_size": 128}


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[LocalHub]:
    """Five repos of lab, two on a page."""
    with LocalHub(tmp_path / "hub", limits=Limits(list_page=2)) as hub:
        for number in range(5):
            hub.seed(f"lab/M{number}", {"README.md": ""})
        yield hub


def test_a_repo_is_listed_with_what_the_rules_look_at(hub: LocalHub) -> None:
    weights = safetensors({"model.norm.weight": [256], "lm_head.weight": [10, 10]})
    hub.seed("lab/Tiny", source_files(model__safetensors=weights), gated="auto")
    hub.repo("lab/Tiny").update_settings(downloads=1204, created_at="2026-11-20T08:00:00.000Z")
    [listing] = read_authors(as_bot(hub), ["lab"])
    [found] = listing.repos
    expected = ListedRepo(
        repo_id="lab/Tiny",
        created="2026-11-20T08:00:00Z",
        downloads=1204,
        parameters=256 + 100,
        architectures=("Qwen3ForCausalLM",),
        model_type="qwen3",
        library="transformers",
        gated=True,
    )
    assert replace(found, tags=()) == expected
    assert {"safetensors", "chat", "license:apache-2.0"} <= set(found.tags)


def test_what_is_quantized_or_not_a_model_is_listed_as_such(hub: LocalHub) -> None:
    config = json.dumps(CONFIG | {"quantization_config": QUANTIZED})
    hub.seed("lab/A", source_files(config__json=config))
    hub.seed("lab/B", source_files(README__md="---\ntags: [gptq]\n---\n"))
    hub.seed("lab/C", {"README.md": "---\nbase_model: lab/A\nbase_model_relation: quantized\n---\n"})
    hub.seed("lab/D", {"config.json": json.dumps({"model_type": 3, "architectures": "x"})})
    hub.seed("lab/E", source_files(), private=True)
    hub.seed("lab/F", source_files())
    repos = read_authors(Hub(hub.endpoint, hub.add_token("lab", role="read")), ["lab"])[0].repos
    by_id = {repo.repo_id[-1]: repo for repo in repos}
    assert {name: repo.quantized for name, repo in by_id.items()} == {
        "A": "awq",
        "B": "gptq",
        "C": "base_model:quantized:lab/A",
        **dict.fromkeys("DEF", ""),
    }
    assert (by_id["C"].model_type, by_id["D"].model_type, by_id["D"].architectures) == (None, None, ())
    assert [name for name, repo in by_id.items() if repo.private] == ["E"]


def test_the_config_of_the_list_may_name_the_method(hub: LocalHub) -> None:
    config = {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}}
    hub.faults.add(Fault(path="/api/models", status=200, body=json.dumps([{"id": "lab/A", "config": config}])))
    [found] = read_authors(as_bot(hub), ["lab"])[0].repos
    assert found == ListedRepo(repo_id="lab/A", created="", model_type="qwen3", quantized="fp8")


def test_names_and_types_that_the_hub_does_not_have_are_not_trusted(hub: LocalHub) -> None:
    odd = {"id": "lab/A", "downloads": "9", "library_name": ["x"], "tags": "x", "safetensors": None, "config": []}
    names = ("lab/B\n  - evil/Model", "lab/C, x: 1", "lab", "lab/D/e")
    body = json.dumps([odd, *({"id": name} for name in names)])
    hub.faults.add(Fault(path="/api/models", status=200, body=body))
    assert read_authors(as_bot(hub), ["lab"])[0].repos == (ListedRepo(repo_id="lab/A", created=""),)
    hub.faults.add(Fault(path="/api/models", status=200, body=json.dumps([{"id": "lab/A", "createdAt": "soon"}])))
    assert read_authors(as_bot(hub), ["lab"])[0].problem == "its list cannot be read: ValueError"


def test_an_author_is_listed_once_in_pages_and_others_not_at_all(pages: LocalHub) -> None:
    pages.seed("other/X", {})
    found = read_authors(as_bot(pages), ["lab", "Lab", "unknown", "LAB"])
    assert [(item.author, len(item.repos), item.problem) for item in found] == [
        ("lab", 5, None),
        ("unknown", 0, None),
    ]
    assert [request.path for request in pages.requests] == ["/api/models"] * 4
    assert [repo.repo_id for repo in found[0].repos] == [f"lab/M{number}" for number in (4, 3, 2, 1, 0)]


def test_a_list_that_breaks_off_is_a_problem_and_never_half_a_list(pages: LocalHub) -> None:
    pages.faults.add(Fault(path="/api/models", status=503, times=None, skip=2))
    with stamina.set_testing(True, attempts=2):
        [broken] = read_authors(as_bot(pages), ["lab"])
    assert (broken.author, broken.repos) == ("lab", ())
    assert broken.problem == "the Hub answers 503, after 2 tries"
    pages.faults.clear()
    pages.faults.add(Fault(path="/api/models", status=403, skip=2))
    assert read_authors(as_bot(pages), ["lab"])[0].problem == "the Hub answers 403"


def test_a_page_that_fails_once_is_asked_for_again(pages: LocalHub) -> None:
    pages.faults.add(Fault(path="/api/models", status=503, skip=2))
    with stamina.set_testing(True, attempts=2):
        [listing] = read_authors(as_bot(pages), ["lab"])
    assert len(listing.repos) == 5


def test_a_page_that_is_not_of_the_hub_is_a_problem(pages: LocalHub) -> None:
    pages.faults.add(Fault(path="/api/models", status=200, times=None, body="<html>Log in</html>"))
    with stamina.set_testing(True, attempts=1):
        [broken] = read_authors(as_bot(pages), ["lab"])
    assert str(broken.problem).startswith("an answer is not one of the Hub's API")


def test_of_a_list_that_breaks_off_the_heads_are_known_as_far_as_it_goes(
    pages: LocalHub, caplog: pytest.LogCaptureFixture
) -> None:
    pages.faults.add(Fault(path="/api/models", status=503, times=None, skip=2))
    with stamina.set_testing(True, attempts=2):
        [broken] = read_authors(as_bot(pages), (), pages={"lab": 10})
    assert [head.repo_id for head in broken.heads] == ["lab/M4", "lab/M3", "lab/M2", "lab/M1"]
    assert [head.sha for head in broken.heads[:1]] == [pages.refs("lab/M4")["refs/heads/main"]]
    assert caplog.messages[-1] == (
        "lab: its list of repos ends on page 3 (the Hub answers 503, after 2 tries), so models that are not on it "
        "are asked one by one"
    )


def test_heads_are_read_from_as_many_pages_as_they_are_worth(pages: LocalHub) -> None:
    [part, whole] = read_authors(as_bot(pages), ["other"], pages={"lab": 2, "OTHER".lower(): 5})[::-1]
    assert (part.author, len(part.heads), part.pages, part.unread, part.repos) == ("lab", 4, 2, True, ())
    assert (whole.author, whole.heads, whole.problem) == ("other", (), None)
    assert len(pages.requests) == 3


def test_a_head_has_the_settings_that_are_not_in_its_commit(hub: LocalHub) -> None:
    sha = hub.seed("lab/Tiny", source_files(), gated="manual", private=True)
    hub.repo("lab/Tiny").update_settings(disabled=True)
    hub_of_lab = Hub(hub.endpoint, hub.add_token("lab", role="read"))
    for listed in (read_authors(hub_of_lab, ["lab"]), read_authors(hub_of_lab, (), pages={"lab": 1})):
        assert listed[0].heads == (Head(repo_id="lab/Tiny", sha=sha, gated="manual", private=True, disabled=True),)


@pytest.mark.parametrize(
    "odd",
    [
        {"sha": "main"},
        {"sha": None},
        {"gated": "yes"},
        {"gated": None},
        {"gated": []},
        {"private": 0},
        {"id": "lab"},
    ],
    ids=str,
)
def test_a_head_of_other_types_is_none(hub: LocalHub, odd: dict[str, object]) -> None:
    item = {"id": "lab/A", "sha": "0" * 40, "gated": False, "private": False} | odd
    hub.faults.add(Fault(path="/api/models", status=200, body=json.dumps([item])))
    assert read_authors(as_bot(hub), (), pages={"lab": 1})[0].heads == ()


def test_the_next_page_is_asked_of_the_same_hub(hub: LocalHub) -> None:
    """The token is for no other."""
    hub.seed("lab/A", {})
    elsewhere = {"Link": '<http://192.0.2.1/api/models?author=lab&cursor=0>; rel="next"'}
    hub.faults.add(Fault(path="/api/models", status=200, body="[]", headers=elsewhere))
    [listing] = read_authors(as_bot(hub), ["lab"])
    assert [repo.repo_id for repo in listing.repos] == ["lab/A"]
    assert [request.query for request in hub.requests][1] == "author=lab&cursor=0"


def test_a_list_without_an_end_is_a_problem(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_MOST_PAGES", 3)
    endless = {"Link": f'<{hub.endpoint}/api/models?author=lab&cursor=0>; rel="next"'}
    hub.faults.add(Fault(path="/api/models", status=200, body="[]", headers=endless, times=None))
    [listing] = read_authors(as_bot(hub), ["lab"])
    assert (listing.problem, len(hub.requests)) == ("it has more than 0 repos", 3)


def test_a_list_of_too_many_repos_is_a_problem(pages: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_MOST_REPOS", 3)
    [listing] = read_authors(as_bot(pages), ["lab"])
    assert (listing.repos, listing.problem) == ((), "it has more than 4 repos")
